//! Programs that connect, hand the connection to a child, and are right to: it is what they do.

/// The names of their files. `tests/hosts/handed_on.rs` shows of each that it works, and that it does not under another name.
pub(crate) const KEPT: [&str; 8] = [
    // Goes on in a child with `-f` and as the master of ControlPersist.
    "ssh",
    // Reads and writes in two processes when it talks to a daemon.
    "rsync",
    // Has `pack-objects` write into the connection when it pushes to a daemon.
    "git",
    // The same under the name of what it does: where that is a link to the file, it is the name of the process.
    "git-*",
    // `exec 3<>/dev/tcp/host/port` is for the programs that it starts.
    "bash",
    // And so is what `ztcp` connects.
    "zsh",
    // Talks to each peer in a child with `fork`, also if it has connected.
    "socat",
    // Receives the log in a child, by a connection of its own.
    "pg_basebackup",
];
