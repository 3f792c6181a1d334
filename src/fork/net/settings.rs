//! What the environment says. A wrong setting is an error: half a net would be taken for a whole one.

use super::place::Place;
use super::policy::{Error, Kind, Policy};
use crate::fork::handler::net::rules::Mode;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

const NET: &str = "FORKSAFE_NET";
const KEEP: &str = "FORKSAFE_KEEP";
const REPORT: &str = "FORKSAFE_REPORT";
const MODE: &str = "FORKSAFE_MODE";

/// An empty variable is as good as none.
pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Policy>, Error> {
    let said = |name| variable(name).filter(|value| !value.is_empty());
    let net = said(NET).unwrap_or_else(|| "tcp".into());
    let mut policy = Policy::none();
    if net != "off" {
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
                wrong(KEEP, &keep, part, "an address (10.0.0.5:6379), *:PORT, unix:PATTERN or fd:NUMBER")
            })?;
        }
    }
    if let Some(report) = said(REPORT) {
        policy = match report.as_bytes() {
            b"stderr" => policy.report_to_stderr(),
            [b'/', ..] => policy.report_to(&report),
            _ => return Err(wrong(REPORT, &report, &report, "stderr or an absolute path")),
        };
    }
    if let Some(mode) = said(MODE) {
        policy = policy.mode(match mode.as_bytes() {
            b"disown" => Mode::Disown,
            b"report" => Mode::Report,
            b"deny" => Mode::Deny,
            _ => return Err(wrong(MODE, &mode, &mode, "disown, report or deny")),
        });
    }
    Ok((net != "off").then_some(policy))
}

fn kept(policy: Policy, part: &OsStr) -> Option<Policy> {
    if let Some(pattern) = part.as_bytes().strip_prefix(b"unix:").filter(|pattern| !pattern.is_empty()) {
        return Some(policy.keep(Place::unix(OsStr::from_bytes(pattern))));
    }
    let text = part.to_str()?;
    match text.strip_prefix("fd:") {
        Some(number) => Some(policy.keep_descriptor(number.parse().ok().filter(|&number| number >= 0)?)),
        None => Some(policy.keep(text.parse::<Place>().ok()?)),
    }
}

fn parts(value: &OsStr) -> impl Iterator<Item = &OsStr> {
    value.as_bytes().split(|&byte| byte == b',').map(OsStr::from_bytes)
}

fn wrong(variable: &'static str, value: &OsStr, part: &OsStr, wanted: &'static str) -> Error {
    let text = |text: &OsStr| text.to_string_lossy().into_owned();
    Error(Kind::Setting { variable, value: text(value), part: text(part), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &[(&str, &str)]) -> Result<Option<Policy>, Error> {
        read(|name| settings.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn tcp_is_what_is_taken_if_nothing_is_said() {
        assert_eq!(of(&[]).unwrap(), Some(Policy::tcp()));
        assert_eq!(of(&[(NET, ""), (MODE, "")]).unwrap(), Some(Policy::tcp()));
        assert_eq!(of(&[(NET, "off")]).unwrap(), None);
    }

    #[test]
    fn everything_can_be_said() {
        let said = [
            (NET, "tcp,unix:/run/postgresql/*,udp"),
            (KEEP, "10.0.0.5:6379,[::1]:1,*:80,fd:7,unix:@x"),
            (REPORT, "/var/log/net"),
            (MODE, "deny"),
        ];
        let ip = |text: &str| text.parse::<Place>().unwrap();
        let policy = Policy::tcp().unix("/run/postgresql/*").udp().keep(ip("10.0.0.5:6379")).keep(ip("[::1]:1"));
        let policy = policy.keep(Place::port(80)).keep_descriptor(7).keep(Place::unix("@x"));
        assert_eq!(of(&said).unwrap(), Some(policy.report_to("/var/log/net").mode(Mode::Deny)));
    }

    #[test]
    fn what_means_nothing_is_said_with_what_it_could_be() {
        let wrong = [
            (NET, "tcp,sctp"),
            (NET, "tcp,"),
            (NET, "unix:"),
            (NET, "tcp,off"),
            (KEEP, "localhost:6379"),
            (KEEP, "fd:-1"),
            (KEEP, "fd:x"),
            (KEEP, "unix:"),
            (REPORT, "log"),
            (MODE, "Deny"),
        ];
        for setting in wrong {
            let error = of(&[setting]).unwrap_err();
            assert!(error.is_wrong_setting() && error.to_string().starts_with(setting.0), "{error}");
            assert!(
                of(&[setting, (NET, "off")]).is_err() || setting.0 == NET,
                "{setting:?} is wrong with the net off, too"
            );
        }
        assert_eq!(
            of(&[(NET, "tcp,sctp")]).unwrap_err().to_string(),
            r#"FORKSAFE_NET=tcp,sctp: "sctp" is not tcp, udp, unix:PATTERN or off"#
        );
    }
}
