//! What the tests need on the machine, and how to get it. A test is never skipped for want of it.

use crate::steps::Steps;
use anyhow::{Result, bail, ensure};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

pub struct Need {
    what: &'static str,
    debian_package: &'static str,
    /// The address of a server that somebody else runs, instead of one of our own.
    instead: Option<&'static str>,
    is_there: fn(&Shell) -> bool,
}

const REDIS: Need = Need {
    what: "redis-server",
    debian_package: "redis-server",
    instead: Some("REDIS_URL"),
    is_there: |sh| program(sh, "redis-server").is_some(),
};

const POSTGRES: Need = Need {
    what: "a PostgreSQL server",
    debian_package: "postgresql",
    instead: Some("DATABASE_URL"),
    is_there: |sh| postgres(sh).is_some(),
};

const PGBOUNCER: Need = Need {
    what: "PgBouncer",
    debian_package: "pgbouncer",
    instead: None,
    // Debian keeps it off the `PATH` of ordinary users.
    is_there: |sh| program(sh, "pgbouncer").is_some() || Path::new("/usr/sbin/pgbouncer").is_file(),
};

/// Of `cargo xtask test`.
pub const TESTS: &[Need] = &[
    REDIS,
    POSTGRES,
    PGBOUNCER,
    Need {
        what: "pkg-config (for native-tls)",
        debian_package: "pkg-config",
        instead: None,
        is_there: |sh| program(sh, "pkg-config").is_some(),
    },
    Need {
        what: "OpenSSL's headers (for native-tls)",
        debian_package: "libssl-dev",
        instead: None,
        is_there: |sh| cmd!(sh, "pkg-config --exists openssl").quiet().ignore_stderr().run().is_ok(),
    },
    Need {
        what: "libpq (for Diesel)",
        debian_package: "libpq-dev",
        instead: None,
        is_there: |sh| cmd!(sh, "pkg-config --exists libpq").quiet().ignore_stderr().run().is_ok(),
    },
    Need {
        what: "MariaDB",
        debian_package: "mariadb-server",
        instead: None,
        // Debian keeps the server off the path of ordinary users.
        is_there: |sh| sh.path_exists("/usr/sbin/mariadbd") || program(sh, "mariadbd").is_some(),
    },
    Need {
        what: "memcached",
        debian_package: "memcached",
        instead: None,
        is_there: |sh| program(sh, "memcached").is_some(),
    },
    Need {
        what: "RabbitMQ",
        debian_package: "rabbitmq-server",
        instead: None,
        // Debian's script on the path wants to be its root or its user.
        is_there: |_| Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").is_file(),
    },
    Need {
        what: "Python (for the preloaded library)",
        debian_package: "python3",
        instead: None,
        is_there: |sh| program(sh, "python3").is_some(),
    },
    Need {
        what: "Node.js (for the preloaded library)",
        debian_package: "nodejs",
        instead: None,
        is_there: |sh| program(sh, "node").is_some(),
    },
    of_hosts("gunicorn", "gunicorn", |sh| program(sh, "gunicorn").is_some()),
    of_hosts("psycopg2", "python3-psycopg2", |sh| imports(sh, "psycopg2")),
    of_hosts("redis-py", "python3-redis", |sh| imports(sh, "redis")),
    of_hosts("SQLAlchemy", "python3-sqlalchemy", |sh| imports(sh, "sqlalchemy")),
    of_hosts("Celery", "python3-celery", |sh| imports(sh, "celery")),
    of_hosts("Puma", "puma", |sh| program(sh, "puma").is_some()),
    of_hosts("Ruby's pg", "ruby-pg", |sh| requires(sh, "pg")),
    of_hosts("Ruby's redis", "ruby-redis", |sh| requires(sh, "redis")),
    of_hosts("nginx", "nginx", |sh| Path::new("/usr/sbin/nginx").is_file() || program(sh, "nginx").is_some()),
    of_hosts("Apache", "apache2", |sh| Path::new("/usr/sbin/apache2").is_file() || program(sh, "apache2").is_some()),
    of_hosts("sshd", "openssh-server", |sh| Path::new("/usr/sbin/sshd").is_file() || program(sh, "sshd").is_some()),
    of_hosts("ssh", "openssh-client", |sh| program(sh, "ssh").is_some()),
    of_hosts("git", "git", |sh| program(sh, "git").is_some()),
    of_hosts("rsync", "rsync", |sh| program(sh, "rsync").is_some()),
    of_hosts("socat", "socat", |sh| program(sh, "socat").is_some()),
    of_hosts("zsh", "zsh", |sh| program(sh, "zsh").is_some()),
];

/// What programs under the preloaded library are made of.
const fn of_hosts(what: &'static str, debian_package: &'static str, is_there: fn(&Shell) -> bool) -> Need {
    Need { what, debian_package, instead: None, is_there }
}

/// Debian's Python: there may be another before it on the `PATH`.
fn imports(sh: &Shell, module: &str) -> bool {
    let import = format!("import {module}");
    cmd!(sh, "/usr/bin/python3 -c {import}").quiet().ignore_stderr().run().is_ok()
}

/// And Debian's Ruby.
fn requires(sh: &Shell, library: &str) -> bool {
    cmd!(sh, "/usr/bin/ruby -r {library} -e true").quiet().ignore_stderr().run().is_ok()
}

/// Of the integration tests under AddressSanitizer.
pub const SERVERS: &[Need] = &[REDIS, POSTGRES, PGBOUNCER];

/// Of the cluster's benchmark.
pub const BENCH_SERVERS: &[Need] = &[
    REDIS,
    Need { what: "wrk", debian_package: "wrk", instead: None, is_there: |sh| program(sh, "wrk").is_some() },
    Need { what: "Puma", debian_package: "puma", instead: None, is_there: |sh| program(sh, "puma").is_some() },
    Need {
        what: "Ruby's client of Redis",
        debian_package: "ruby-redis",
        instead: None,
        is_there: |sh| cmd!(sh, "ruby -rredis -e 0").quiet().ignore_stderr().run().is_ok(),
    },
    Need {
        what: "Ruby's connection pool",
        debian_package: "ruby-connection-pool",
        instead: None,
        is_there: |sh| cmd!(sh, "ruby -rconnection_pool -e 0").quiet().ignore_stderr().run().is_ok(),
    },
    Need {
        what: "gunicorn",
        debian_package: "gunicorn",
        instead: None,
        is_there: |sh| program(sh, "gunicorn").is_some(),
    },
    Need {
        what: "Python's client of Redis",
        debian_package: "python3-redis",
        instead: None,
        is_there: |sh| cmd!(sh, "python3 -c").arg("import redis").quiet().ignore_stderr().run().is_ok(),
    },
];

/// Of the integration tests under valgrind.
pub const VALGRIND: &[Need] = &[
    REDIS,
    POSTGRES,
    Need {
        what: "valgrind",
        debian_package: "valgrind",
        instead: None,
        is_there: |sh| program(sh, "valgrind").is_some(),
    },
];

/// Sees to it that everything is there. `chore` is what installs it.
pub fn provide(sh: &Shell, steps: &mut Steps, needs: &[Need], install: bool, chore: &str) -> Result<()> {
    let missing = missing(sh, needs);
    if missing.is_empty() {
        return Ok(());
    }
    let is_root = cmd!(sh, "id -u").quiet().read()? == "0";
    if !(install && is_root) {
        bail!("{}", advice(&missing, chore));
    }
    apt_get_install(sh, steps, &missing)?;
    let missing = self::missing(sh, needs);
    ensure!(missing.is_empty(), "even after the installation, {}", advice(&missing, chore));
    Ok(())
}

fn missing<'a>(sh: &Shell, needs: &'a [Need]) -> Vec<&'a Need> {
    let given = |need: &Need| need.instead.is_some_and(|variable| sh.var_os(variable).is_some());
    needs.iter().filter(|need| !given(need) && !(need.is_there)(sh)).collect()
}

fn advice(missing: &[&Need], chore: &str) -> String {
    let mut advice = String::from("the tests need what is not there:\n");
    for Need { what, debian_package, instead, .. } in missing {
        advice += &format!("  - {what}: Debian's package {debian_package}");
        advice += &instead.map(|variable| format!(", or set {variable}")).unwrap_or_default();
        advice += "\n";
    }
    advice + &format!("As root, `cargo xtask {chore} --install` installs all of it on Debian and its kin.")
}

fn apt_get_install(sh: &Shell, steps: &mut Steps, missing: &[&Need]) -> Result<()> {
    let packages = missing.iter().map(|need| need.debian_package);
    let _no_services = NoServices::begin()?;
    steps.run(cmd!(sh, "apt-get update"))?;
    let quietly = "DEBIAN_FRONTEND=noninteractive";
    steps.run(cmd!(sh, "env {quietly} apt-get install -y --no-install-recommends {packages...}"))
}

/// While this lives, the packages' scripts start no servers: the tests start their own.
struct NoServices {
    /// Unless the machine had a policy of its own.
    policy: Option<&'static Path>,
}

impl NoServices {
    fn begin() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        match File::create_new(path) {
            Ok(mut file) => {
                let policy = Self { policy: Some(path) };
                // 101: the action is forbidden.
                file.write_all(b"#!/bin/sh\nexit 101\n")?;
                file.set_permissions(fs::Permissions::from_mode(0o755))?;
                Ok(policy)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { policy: None }),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = self.policy
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("{} stays behind, remove it: {error}", path.display());
        }
    }
}

/// Where `PATH` has a program.
pub fn program(sh: &Shell, name: &str) -> Option<PathBuf> {
    let path = sh.var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The folder with PostgreSQL's programs. Debian keeps the server's off the `PATH`, in a folder for each version.
pub fn postgres(sh: &Shell) -> Option<PathBuf> {
    let path = sh.var_os("PATH").unwrap_or_default();
    let versions = sh.read_dir("/usr/lib/postgresql").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(versions.iter().map(|version| version.join("bin")));
    folders.find(|folder| ["postgres", "initdb"].iter().all(|name| folder.join(name).is_file()))
}
