//! What the environment says. A wrong setting is an error: half a net would be taken for a whole one.

use super::place::Place;
use super::policy::{Error, Kind, Policy};
use crate::fork::handler::net::rules::Mode;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

const NET: &str = "FORKSAFE_NET";
const KEEP: &str = "FORKSAFE_KEEP";
const REPORT: &str = "FORKSAFE_REPORT";
const MODE: &str = "FORKSAFE_MODE";

const SETTINGS: [&str; 4] = [NET, KEEP, REPORT, MODE];

/// Of letters that are wrong, too many or missing, in a name that is still taken for a setting's.
const NEAR: usize = 2;

/// Of this crate's tests, and near one: whoever runs those under the net means no setting of it.
const OF_TESTS: &str = "FORKSAFE_TEST";

/// An empty variable is as good as none.
pub(super) fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Option<Policy>, Error> {
    let mut ours = BTreeMap::new();
    for (name, value) in variables {
        if let Some(setting) = SETTINGS.into_iter().find(|&setting| name == setting) {
            ours.insert(setting, value);
        } else if let Some(meant) = meant(name.as_bytes()).filter(|_| !value.is_empty()) {
            return Err(Error(Kind::NoSetting { name: name.to_string_lossy().into_owned(), meant }));
        }
    }
    let said = |name| ours.get(name).filter(|value: &&OsString| !value.is_empty()).cloned();
    let net = said(NET).unwrap_or_else(|| "tcp".into());
    let mut policy = Policy::none();
    let is_off = net.as_bytes().trim_ascii() == b"off";
    if !is_off {
        for part in parts(&net) {
            policy = match part.as_bytes() {
                b"tcp" => policy.and_tcp(),
                b"udp" => policy.udp(),
                [b'u', b'n', b'i', b'x', b':', pattern @ ..] if !pattern.is_empty() => {
                    policy.unix(OsStr::from_bytes(pattern))
                }
                _ => return Err(wrong(NET, &net, part, "tcp, udp, unix:PATTERN or off")),
            };
        }
    }
    if let Some(keep) = said(KEEP) {
        for part in parts(&keep) {
            policy = kept(policy, part).ok_or_else(|| {
                wrong(KEEP, &keep, part, "an address (10.0.0.5:6379), *:PORT, unix:PATTERN, fd:NUMBER or program:NAME")
            })?;
        }
    }
    if let Some(report) = said(REPORT) {
        policy = match report.as_bytes() {
            b"stderr" => policy.report_to_stderr(),
            [b'/', ..] => policy.report_to(&report),
            _ => return Err(wrong(REPORT, &report, &report, "stderr or an absolute path")),
        };
        policy.check_report()?;
    }
    if let Some(mode) = said(MODE) {
        policy = policy.mode(match mode.as_bytes() {
            b"disown" => Mode::Disown,
            b"report" => Mode::Report,
            b"deny" => Mode::Deny,
            _ => return Err(wrong(MODE, &mode, &mode, "disown, report or deny")),
        });
    }
    Ok((!is_off).then_some(policy))
}

/// The setting of which this is a misspelling, as it seems. Other names that begin as ours do are the program's own, or Kubernetes', which tells
/// each pod of a service called `forksafe`: `FORKSAFE_SERVICE_HOST`, `FORKSAFE_PORT`, `FORKSAFE_PORT_80_TCP`.
fn meant(name: &[u8]) -> Option<&'static str> {
    let has = |part: &[u8]| name.windows(part.len()).any(|at| at == part);
    if name == OF_TESTS.as_bytes() || has(b"_SERVICE_") || has(b"_PORT_") || name.ends_with(b"_PORT") {
        return None;
    }
    let begun = SETTINGS.into_iter().find(|setting| name.starts_with(setting.as_bytes()));
    let distances = SETTINGS.into_iter().map(|setting| (distance(setting.as_bytes(), name), setting));
    begun.or_else(|| distances.min().filter(|&(distance, _)| distance <= NEAR).map(|(_, setting)| setting))
}

/// Levenshtein's, a row at a time. Not reckoned where the lengths tell that it is too much.
fn distance(setting: &[u8], name: &[u8]) -> usize {
    let at_least = setting.len().abs_diff(name.len());
    if at_least > NEAR {
        return at_least;
    }
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for (done, letter) in setting.iter().enumerate() {
        let (mut left, mut above_left) = (done + 1, done);
        for (cell, other) in row.iter_mut().skip(1).zip(name) {
            let replaced = above_left + usize::from(letter != other);
            above_left = *cell;
            left = replaced.min(left + 1).min(above_left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(at_least)
}

fn kept(policy: Policy, part: &OsStr) -> Option<Policy> {
    if let Some(pattern) = part.as_bytes().strip_prefix(b"unix:").filter(|pattern| !pattern.is_empty()) {
        return Some(policy.keep(Place::unix(OsStr::from_bytes(pattern))));
    }
    if let Some(name) = part.as_bytes().strip_prefix(b"program:") {
        // A path would fit no name.
        let is_name = !name.is_empty() && !name.contains(&b'/');
        return is_name.then(|| policy.keep_program(OsStr::from_bytes(name)));
    }
    let text = part.to_str()?;
    match text.strip_prefix("fd:") {
        Some(number) => Some(policy.keep_descriptor(number.parse().ok().filter(|&number| number >= 0)?)),
        None => Some(policy.keep(text.parse::<Place>().ok()?)),
    }
}

fn parts(value: &OsStr) -> impl Iterator<Item = &OsStr> {
    value.as_bytes().split(|&byte| byte == b',').map(|part| OsStr::from_bytes(part.trim_ascii()))
}

fn wrong(variable: &'static str, value: &OsStr, part: &OsStr, wanted: &'static str) -> Error {
    let text = |text: &OsStr| text.to_string_lossy().into_owned();
    Error(Kind::Setting { variable, value: text(value), part: text(part), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &[(&str, &str)]) -> Result<Option<Policy>, Error> {
        read(settings.iter().map(|(variable, value)| (variable.into(), value.into())))
    }

    #[test]
    fn tcp_is_what_is_taken_if_nothing_is_said() {
        assert_eq!(of(&[]).unwrap(), Some(Policy::tcp()));
        assert_eq!(of(&[(NET, ""), (MODE, "")]).unwrap(), Some(Policy::tcp()));
        assert_eq!(of(&[(NET, "off")]).unwrap(), None);
        assert_eq!(of(&[(NET, "udp"), (NET, "off"), ("PATH", "/bin")]).unwrap(), None);
    }

    #[test]
    fn everything_can_be_said() {
        let said = [
            (NET, "tcp,unix:/run/postgresql/*,udp"),
            (KEEP, "10.0.0.5:6379, [::1]:1,*:80 ,fd:7,unix:@x,program:ssh"),
            (REPORT, "/var/log/net"),
            (MODE, "deny"),
        ];
        let ip = |text: &str| text.parse::<Place>().unwrap();
        let policy = Policy::tcp().unix("/run/postgresql/*").udp().keep(ip("10.0.0.5:6379")).keep(ip("[::1]:1"));
        let policy = policy.keep(Place::port(80)).keep_descriptor(7).keep(Place::unix("@x")).keep_program("ssh");
        assert_eq!(of(&said).unwrap(), Some(policy.report_to("/var/log/net").mode(Mode::Deny)));
    }

    #[test]
    fn what_means_nothing_is_said_with_what_it_could_be() {
        let wrong = [
            (NET, "tcp,sctp"),
            (NET, "tcp, "),
            (NET, "unix:"),
            (NET, "tcp,off"),
            (KEEP, "localhost:6379"),
            (KEEP, "fd:-1"),
            (KEEP, "fd:x"),
            (KEEP, "unix:"),
            (KEEP, "program:"),
            (KEEP, "program:/usr/bin/ssh"),
            (REPORT, "log"),
            (MODE, "Deny"),
        ];
        for setting in wrong {
            let error = of(&[setting]).unwrap_err();
            assert!(error.is_wrong_setting() && error.to_string().starts_with(setting.0), "{error}");
            assert!(
                setting.0 == NET || of(&[setting, (NET, "off")]).is_err(),
                "{setting:?} is wrong with the net off, too"
            );
        }
        assert_eq!(
            of(&[(NET, "tcp,sctp")]).unwrap_err().to_string(),
            r#"FORKSAFE_NET=tcp,sctp: "sctp" is not tcp, udp, unix:PATTERN or off"#
        );
    }

    #[test]
    fn a_name_that_is_nearly_a_settings_is_said_with_what_it_could_be() {
        let near = [
            ("FORKSAFE_MODES", MODE),
            ("FORKSAFE_NETS", NET),
            ("FORKSAFE_KEEPS", KEEP),
            ("FORKSAFE_KEEP_DATABASE", KEEP),
            ("FORKSAFE_REPROT", REPORT),
            ("FORKSAFE_EPORT", REPORT),
            ("FORKSAFE_KEP", KEEP),
            ("FORKSAFEMODE", MODE),
            ("FORK_SAFE_NET", NET),
            ("FORKSAVE_MODE", MODE),
        ];
        for (name, meant) in near {
            for others in [&[][..], &[(NET, "off")], &[(MODE, "report")]] {
                let error = of(&[&[(name, "report")], others].concat()).unwrap_err();
                assert!(error.is_wrong_setting(), "{error}");
                let text = format!("{name} is no setting: if {meant} is meant, rename it, and if not, unset it");
                assert_eq!(error.to_string(), text);
            }
            assert_eq!(of(&[(name, "")]).unwrap(), Some(Policy::tcp()));
        }
    }

    #[test]
    fn other_names_are_somebody_elses() {
        let of_kubernetes = [
            "FORKSAFE_SERVICE_HOST",
            "FORKSAFE_SERVICE_PORT",
            "FORKSAFE_SERVICE_PORT_HTTP",
            "FORKSAFE_PORT",
            "FORKSAFE_PORT_80_TCP",
            "FORKSAFE_PORT_80_TCP_ADDR",
            "FORKSAFE_NET_SERVICE_HOST",
            "FORKSAFE_NET_PORT",
            "FORKSAFE_NET_PORT_80_TCP",
        ];
        let of_others =
            ["FORKSAFE_ENABLED", "FORKSAFE_URL", "FORKSAFE_POLICY", "FORKSAFE_", "FORKSAFELY", "forksafe_mode", "NET"];
        let of_ours = ["FORKSAFE_CLUSTER", "FORKSAFE_CONTROL", "FORKSAFE_WITHOUT_PAGE", "FORKSAFE_TEST"];
        for name in of_kubernetes.into_iter().chain(of_others).chain(of_ours) {
            assert_eq!(of(&[(name, "tcp://10.0.0.1:80")]).unwrap(), Some(Policy::tcp()), "{name}");
        }
    }
}
