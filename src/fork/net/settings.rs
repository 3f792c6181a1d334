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

/// What begins all of their names.
const OURS: &str = "FORKSAFE_";

/// Of other parts of this crate, and of its tests: whoever runs those under the net means no setting of it.
const OTHERS: [&str; 9] = [
    "FORKSAFE_CLUSTER",
    "FORKSAFE_CONTROL",
    "FORKSAFE_WITHOUT_PAGE",
    "FORKSAFE_TEST",
    "FORKSAFE_TEST_BY",
    "FORKSAFE_ONLY_FORK",
    "FORKSAFE_IT_PIDS",
    "FORKSAFE_DYNOS_SECONDS",
    "FORKSAFE_NOTHING",
];

/// An empty variable is as good as none.
pub(super) fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Option<Policy>, Error> {
    let is_ours = |name: &OsString| name.as_bytes().starts_with(OURS.as_bytes());
    let ours: BTreeMap<_, _> = variables.into_iter().filter(|(name, _)| is_ours(name)).collect();
    let said = |name: &str| ours.get(OsStr::new(name)).filter(|value| !value.is_empty()).cloned();
    let is_known = |name: &OsString| [NET, KEEP, REPORT, MODE].iter().chain(&OTHERS).any(|known| name == known);
    if let Some((unknown, _)) = ours.iter().find(|(name, value)| !value.is_empty() && !is_known(name)) {
        return Err(Error(Kind::NoSetting(unknown.to_string_lossy().into_owned())));
    }
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
    fn a_name_that_is_none_of_ours_is_said_and_those_of_other_parts_are_not() {
        for unknown in ["FORKSAFE_MODES", "FORKSAFE_KEEPS", "FORKSAFE_POLICY", "FORKSAFE_"] {
            for others in [&[][..], &[(NET, "off")], &[(MODE, "report")]] {
                let error = of(&[&[(unknown, "report")], others].concat()).unwrap_err();
                assert!(error.is_wrong_setting(), "{error}");
                assert!(error.to_string().starts_with(&format!("{unknown} is no setting; ")), "{error}");
            }
            assert_eq!(of(&[(unknown, "")]).unwrap(), Some(Policy::tcp()));
        }
        for known in OTHERS {
            assert_eq!(of(&[(known, "1")]).unwrap(), Some(Policy::tcp()));
        }
        assert_eq!(of(&[("FORKSAFELY", "1"), ("forksafe_mode", "1")]).unwrap(), Some(Policy::tcp()));
    }
}
