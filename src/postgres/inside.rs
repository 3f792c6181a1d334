//! Running code inside a client's own runtime, which the client does not show.
//!
//! The driver asks each parameter of a query to write itself down, inside its runtime and before anything is sent. One that
//! refuses ends the query there: not a byte has left.

use ::postgres::Client;
use ::postgres::types::private::BytesMut;
use ::postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Runs it, and says what it returned. `None` if the connection has ended. Call where one may wait.
pub(super) fn inside<R: Send>(client: &mut Client, run: impl FnOnce() -> R + Send) -> Option<R> {
    let visitor = Visitor(Mutex::new((Some(run), None)));
    let _refused = client.query_typed("", &[(&visitor, Type::TEXT)]);
    visitor.0.into_inner().unwrap_or_else(PoisonError::into_inner).1
}

struct Visitor<F, R>(Mutex<(Option<F>, Option<R>)>);

impl<F: FnOnce() -> R + Send, R: Send> ToSql for Visitor<F, R> {
    fn to_sql(&self, _: &Type, _: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let mut visit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = visit.0.take() {
            visit.1 = Some(run());
        }
        Err("nothing is to be sent".into())
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<F, R> fmt::Debug for Visitor<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Visitor")
    }
}
