//! What the environment says of workers and threads, in the variables that Puma, Rails and Heroku have made usual.

use super::plan::Plan;
use std::env;
use std::ffi::OsString;
use std::num::NonZero;
use std::thread;

const WORKERS: &str = "WEB_CONCURRENCY";

/// In this order: Rails's own `config/puma.rb` is stronger than what Puma reads by itself.
const THREADS: [&str; 3] = ["RAILS_MAX_THREADS", "PUMA_MAX_THREADS", "MAX_THREADS"];

/// What Puma has by default.
const USUAL_THREADS: u32 = 5;

/// A variable of the environment does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {value:?}, which is not {expected}")]
pub struct SettingError {
    variable: &'static str,
    value: OsString,
    expected: &'static str,
}

impl SettingError {
    /// Which variable it is.
    pub fn variable(&self) -> &str {
        self.variable
    }
}

impl Plan {
    /// One host with workers and threads as the environment says, and no pools.
    ///
    /// | | | unless set |
    /// | --- | --- | --- |
    /// | workers | `WEB_CONCURRENCY`: a number, or `auto` for as many as this process may use processors | 1 |
    /// | threads | `RAILS_MAX_THREADS`, else `PUMA_MAX_THREADS`, else `MAX_THREADS`: a number, 1 at least | 5 |
    ///
    /// For `auto` the smallest counts of the machine's processors, those that the process is bound to, and the quota of its
    /// cgroup, rounded down, but 1 at least: half a processor has one worker. `WEB_CONCURRENCY=0` is Puma's single mode, as in
    /// [`workers`](Self::workers). Variables that are empty count as not set.
    ///
    /// # Errors
    ///
    /// A variable says something else. One that would not be used, because a stronger one is set, is not looked at.
    ///
    /// ```
    /// use forksafe::sizing::Plan;
    ///
    /// let plan = Plan::from_env()?.hosts(4).pool("db", 5);
    /// # assert!(plan.parallelism() >= 4);
    /// # Ok::<_, forksafe::sizing::SettingError>(())
    /// ```
    pub fn from_env() -> Result<Self, SettingError> {
        Self::new().threads(USUAL_THREADS).with_env()
    }

    /// The same with the workers and threads of this plan where the environment says nothing.
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn with_env(self) -> Result<Self, SettingError> {
        self.with_variables(|name| env::var_os(name))
    }

    fn with_variables(mut self, get: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingError> {
        let set = |variable: &'static str| {
            let value = get(variable)?;
            (!value.to_string_lossy().trim().is_empty()).then_some((variable, value))
        };
        if let Some((variable, value)) = set(WORKERS) {
            self.workers = workers(variable, value)?;
        }
        if let Some((variable, value)) = THREADS.into_iter().find_map(set) {
            self.threads = threads(variable, value)?;
        }
        Ok(self)
    }
}

fn workers(variable: &'static str, value: OsString) -> Result<u32, SettingError> {
    match value.to_str().map(str::trim) {
        Some("auto") => Ok(processors()),
        text => text.and_then(number).ok_or(SettingError { variable, value, expected: "a number of workers, or auto" }),
    }
}

fn threads(variable: &'static str, value: OsString) -> Result<u32, SettingError> {
    let number = value.to_str().map(str::trim).and_then(number).filter(|&threads| threads > 0);
    number.ok_or(SettingError { variable, value, expected: "a number of threads, 1 at least" })
}

/// Digits alone: no sign.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The standard library looks at the affinity of the process, and at the quotas of cgroups of both versions: rounded down,
/// but never 0. Where nothing can be told, 1 is what there is for certain.
fn processors() -> u32 {
    thread::available_parallelism().map_or(1, NonZero::get).try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(variables: &[(&str, &str)]) -> Result<(u32, u32), String> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let plan = Plan::new().workers(2).threads(5).with_variables(get).map_err(|error| error.to_string())?;
        Ok((plan.workers, plan.threads))
    }

    #[test]
    fn the_environment_is_followed() {
        assert_eq!(plan(&[]), Ok((2, 5)));
        assert_eq!(plan(&[("WEB_CONCURRENCY", "3"), ("RAILS_MAX_THREADS", "7")]), Ok((3, 7)));
        assert_eq!(plan(&[("WEB_CONCURRENCY", " 4\n"), ("MAX_THREADS", "8")]), Ok((4, 8)));
        assert_eq!(plan(&[("MAX_THREADS", "8"), ("PUMA_MAX_THREADS", "9")]), Ok((2, 9)));
        assert_eq!(plan(&[("RAILS_MAX_THREADS", "6"), ("PUMA_MAX_THREADS", "nonsense")]), Ok((2, 6)));
        assert_eq!(plan(&[("WEB_CONCURRENCY", ""), ("RAILS_MAX_THREADS", " "), ("MAX_THREADS", "6")]), Ok((2, 6)));
        assert_eq!(plan(&[("WEB_CONCURRENCY", "0")]), Ok((0, 5)));
        assert_eq!(plan(&[("WEB_CONCURRENCY", "auto")]), Ok((processors(), 5)));
    }

    #[test]
    fn wrong_values_are_told_with_their_variable() {
        let said = |variable, value| plan(&[(variable, value)]).unwrap_err();
        assert_eq!(
            said("WEB_CONCURRENCY", "two"),
            "WEB_CONCURRENCY is \"two\", which is not a number of workers, or auto"
        );
        for value in ["-1", "+1", "1.5", "4294967296", "1 2", "AUTO", "٣"] {
            assert!(said("WEB_CONCURRENCY", value).starts_with("WEB_CONCURRENCY is "), "{value}");
        }
        for variable in THREADS {
            assert!(said(variable, "0").ends_with("not a number of threads, 1 at least"), "{variable}");
        }
    }
}
