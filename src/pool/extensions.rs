//! What a program attaches to a connection.

use crate::fork::{Generation, generation};
use std::any::{Any, TypeId};
use std::fmt;
use std::mem;

/// Values that travel with a connection, one of each type: prepared statements, say, or what is known of its session. See
/// [`PooledConnection::extensions_mut`](crate::PooledConnection::extensions_mut).
///
/// ```
/// let mut extensions = forksafe::Extensions::new();
/// assert_eq!(extensions.insert(7_u32), None);
/// assert_eq!(extensions.insert(8_u32), Some(7));
/// assert_eq!(extensions.get::<u32>(), Some(&8));
/// assert_eq!(extensions.get::<String>(), None);
/// ```
// A handful of types at most: a list is found through sooner than a map.
#[derive(Default)]
pub struct Extensions(Vec<(TypeId, Box<dyn Any + Send + Sync>)>);

impl Extensions {
    /// Nothing is attached.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    fn place<T: 'static>(&self) -> Option<usize> {
        self.0.iter().position(|(of, _)| *of == TypeId::of::<T>())
    }

    /// Attaches a value; returns the one of that type that was there.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) -> Option<T> {
        let before = self.remove();
        self.0.push((TypeId::of::<T>(), Box::new(value)));
        before
    }

    /// The value of a type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0[self.place::<T>()?].1.downcast_ref()
    }

    /// The value of a type.
    pub fn get_mut<T: Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        let place = self.place::<T>()?;
        self.0[place].1.downcast_mut()
    }

    /// Detaches the value of a type.
    pub fn remove<T: Send + Sync + 'static>(&mut self) -> Option<T> {
        let place = self.place::<T>()?;
        let value: Box<dyn Any> = self.0.swap_remove(place).1;
        value.downcast().ok().map(|value| *value)
    }

    /// Detaches and drops all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extensions({})", self.0.len())
    }
}

/// Those of one connection. In a child of the process that attached them they are leaked, never dropped: what ends with them may
/// reach for the connection (a statement is closed on it), which is the parent's.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) extensions: Extensions,
    made_in: Generation,
}

impl Attached {
    pub(super) fn nothing() -> Self {
        Self { extensions: Extensions::new(), made_in: generation() }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.extensions.0.is_empty() && self.made_in != generation() {
            mem::forget(mem::take(&mut self.extensions));
        }
    }
}
