//! What a program wants done about the connections of a pool, beside what its manager does.

use super::ManageConnection;
use super::error::Source;
use super::event::HandleEvent;
use crate::Deadline;
use crate::fork::Goodbye;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Customizes the connections of a pool, under r2d2's names. Set by
/// [`Builder::connection_customizer`](crate::Builder::connection_customizer); closures that know the deadline are set by
/// [`after_connect`](crate::Builder::after_connect) and its like.
pub trait CustomizeConnection<C, E>: fmt::Debug + Send + Sync + 'static {
    /// A connection was opened. Default: nothing.
    ///
    /// # Errors
    ///
    /// Any error has the connection closed. It counts as one that could not be opened.
    fn on_acquire(&self, conn: &mut C) -> Result<(), E> {
        let _ = conn;
        Ok(())
    }

    /// A connection has left the pool, and is the callee's: in order, broken, or too old. It is not asked about what a child inherited,
    /// and not about connections that `on_acquire` refused. Default: drops it.
    ///
    /// From here on it is not protected: who keeps it should put it in a [`Guarded`](crate::fork::Guarded).
    ///
    /// This takes the place of the manager's [`goodbye`](ManageConnection::goodbye), and nobody tells it how long it may take. A
    /// pool whose connections are to be looked at once more, and then closed as ever, has
    /// [`before_close`](crate::Builder::before_close).
    fn on_release(&self, conn: C) {
        drop(conn);
    }
}

/// Does nothing.
#[derive(Clone, Copy, Debug)]
pub struct NopConnectionCustomizer;

impl<C, E> CustomizeConnection<C, E> for NopConnectionCustomizer {}

/// Is given the errors of a pool's driver. Set by [`Builder::error_handler`](crate::Builder::error_handler).
pub trait HandleError<E>: fmt::Debug + Send + Sync + 'static {
    /// An attempt to connect or a test has failed.
    fn handle_error(&self, error: E);
}

/// Does nothing: who waits for a connection is told what failed.
#[derive(Clone, Copy, Debug)]
pub struct NopErrorHandler;

impl<E> HandleError<E> for NopErrorHandler {
    fn handle_error(&self, _: E) {}
}

/// Says errors on standard error, each with its sources on one line.
#[derive(Clone, Copy, Debug)]
pub struct LoggingErrorHandler;

impl<E: Error> HandleError<E> for LoggingErrorHandler {
    fn handle_error(&self, error: E) {
        let mut text = format!("forksafe: {error}");
        let mut next = error.source();
        while let Some(source) = next {
            text.push_str(&format!(": {source}"));
            next = source.source();
        }
        text.push('\n');
        crate::fork::write_stderr(&text);
    }
}

/// What is asked about a connection of this pool; an error refuses it.
pub(super) type Ask<M> = dyn Fn(&mut <M as ManageConnection>::Connection, Deadline) -> Result<(), <M as ManageConnection>::Error>
    + Send
    + Sync;

type Look<M> = dyn Fn(&mut <M as ManageConnection>::Connection, Deadline) + Send + Sync;

/// All that a builder was given of the kind.
pub(super) struct Hooks<M: ManageConnection> {
    pub(super) customizer: Option<Box<dyn CustomizeConnection<M::Connection, M::Error>>>,
    pub(super) errors: Option<Box<dyn HandleError<M::Error>>>,
    pub(super) events: Option<Box<dyn HandleEvent>>,
    pub(super) after_connect: Option<Box<Ask<M>>>,
    pub(super) before_acquire: Option<Box<Ask<M>>>,
    pub(super) after_release: Option<Box<Ask<M>>>,
    pub(super) before_close: Option<Box<Look<M>>>,
}

impl<M: ManageConnection> Default for Hooks<M> {
    fn default() -> Self {
        Self {
            customizer: None,
            errors: None,
            events: None,
            after_connect: None,
            before_acquire: None,
            after_release: None,
            before_close: None,
        }
    }
}

impl<M: ManageConnection> Hooks<M> {
    /// Whether somebody wants to know of each checkout and return. Then none of them takes the shortest way.
    pub(super) fn watch_loans(&self) -> bool {
        self.events.is_some() || self.before_acquire.is_some() || self.after_release.is_some()
    }

    /// Whether somebody has a say in how connections end.
    pub(super) fn see_ends(&self) -> bool {
        self.customizer.is_some() || self.before_close.is_some()
    }

    /// After a connect.
    pub(super) fn accept(&self, conn: &mut M::Connection, deadline: Deadline) -> Result<(), M::Error> {
        self.customizer.as_ref().map_or(Ok(()), |customizer| customizer.on_acquire(conn))?;
        self.after_connect.as_ref().map_or(Ok(()), |ask| ask(conn, deadline))
    }

    pub(super) fn accepts_any(&self) -> bool {
        self.customizer.is_none() && self.after_connect.is_none()
    }
}

impl<M: ManageConnection> fmt::Debug for Hooks<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_struct("Hooks");
        set.field("connection_customizer", &self.customizer);
        set.field("error_handler", &self.errors).field("event_handler", &self.events);
        let closures = [
            ("after_connect", self.after_connect.is_some()),
            ("before_acquire", self.before_acquire.is_some()),
            ("after_release", self.after_release.is_some()),
            ("before_close", self.before_close.is_some()),
        ];
        for (name, is_set) in closures {
            set.field(name, &is_set);
        }
        set.finish()
    }
}

/// The end of a connection that its pool had accepted.
pub(super) struct Farewell<M: ManageConnection>(pub(super) Arc<super::shared::Shared<M>>);

impl<M: ManageConnection> Goodbye<M::Connection> for Farewell<M> {
    fn say(&self, mut conn: M::Connection, deadline: Deadline) {
        let here = crate::fork::generation();
        let hooks = &self.0.hooks;
        if let Some(look) = &hooks.before_close {
            look(&mut conn, deadline);
            if crate::fork::generation() != here {
                return std::mem::forget(conn); // It forked, and this is the child.
            }
        }
        match &hooks.customizer {
            Some(customizer) => customizer.on_release(conn),
            None => self.0.manager.goodbye(conn, deadline),
        }
    }
}

/// What was said of an error that somebody else has got.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Told(String);

impl<M: ManageConnection> Hooks<M> {
    /// An error of the driver, for those who wait. If there is somebody who handles errors it is his, and they have its text.
    pub(super) fn tell_error(&self, error: M::Error, may_tell: bool) -> Source {
        match &self.errors {
            Some(handler) if may_tell => {
                let text = error.to_string();
                handler.handle_error(error);
                Box::new(Told(text))
            }
            _ => Box::new(error),
        }
    }
}
