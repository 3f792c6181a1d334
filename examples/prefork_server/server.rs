//! A worker's web server: hyper, on a runtime that starts after the fork.

use crate::Result;
use crate::backend::Backends;
use forksafe::Deadline;
use forksafe::cluster::{Heartbeat, Listener, Worker};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{process, thread};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

/// How long a client may take to send a request, and rest between two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a worker that is about to end waits for its clients. The master waits a little longer.
const FAREWELL: Duration = Duration::from_secs(7);

/// This worker is about to end: each answer asks its client to leave.
static ENDING: AtomicBool = AtomicBool::new(false);

/// By which its threads say until when they will be done.
static HEARTBEATS: OnceLock<&[Heartbeat]> = OnceLock::new();

/// Serves HTTP until the worker has to end. HTTP is this thread's work alone; as many others as it has threads wait for the backends.
pub(crate) fn serve(worker: &Worker, backends: &'static Backends) -> Result<()> {
    // Not before the fork: a runtime has threads, and a child has none of its parent's.
    let runtime = runtime::Builder::new_current_thread()
        .max_blocking_threads(worker.threads())
        .thread_keep_alive(Duration::MAX) // Each keeps its number.
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = match &*worker.take_listeners() {
            [Listener::Tcp(listener)] => TcpListener::from_std(listener.try_clone()?)?,
            _ => return Err("there should be one listener".into()),
        };
        let heartbeats: &'static [Heartbeat] =
            Box::leak((0..worker.threads()).map(|thread| worker.heartbeat(thread)).collect());
        HEARTBEATS.get_or_init(|| heartbeats);
        worker.ready();
        let (tell, mut end_it) = oneshot::channel();
        let shutdown = worker.shutdown().clone();
        thread::spawn(move || tell.send(shutdown.wait(Deadline::never())));
        let clients = GracefulShutdown::new();
        loop {
            tokio::select! {
                _ = &mut end_it => break,
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => attend_to(client, clients.watcher(), backends),
                    Err(error) => {
                        eprintln!("worker {}: {error}", process::id());
                        sleep(Duration::from_millis(100)).await; // It may have no descriptor left until some client goes.
                    }
                },
            }
        }
        end(listener, clients, backends).await
    })
}

/// Answers everyone who has sent a request, and then closes.
async fn end(listener: TcpListener, clients: GracefulShutdown, backends: &'static Backends) -> Result<()> {
    ENDING.store(true, Relaxed);
    // For its client a connection in the kernel's queue is open, and may carry a request. Those that come after the last
    // look are the other workers' to accept. If there are none, the kernel resets them when the listener is closed.
    let listener = listener.into_std()?;
    while let Ok((client, _)) = listener.accept() {
        client.set_nonblocking(true)?;
        attend_to(TcpStream::from_std(client)?, clients.watcher(), backends);
    }
    drop(listener);
    // hyper hangs up on those whose request it has not begun to read. So they have a second, told in rounds of the event
    // loop: what has arrived is read in the first, however late that is.
    for _ in 0..100 {
        if clients.count() == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let _ = timeout(FAREWELL, clients.shutdown()).await; // One that does not take its answer is not waited for.
    Ok(())
}

/// Answers one client's requests, one after the other, as long as it stays.
fn attend_to(client: TcpStream, watcher: Watcher, backends: &'static Backends) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        // The pool makes its callers wait, which must not be the event loop.
        .serve_connection(TokioIo::new(client), service_fn(move |_| spawn_blocking(|| answer(backends))));
    tokio::spawn(watcher.watch(connection)); // That it failed is the client's doing, who knows.
}

/// Asks the backends, and tells who was answered on which connection.
fn answer(backends: &Backends) -> Response<String> {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static THREAD: u64 = THREADS.fetch_add(1, Relaxed) + 1;
        static REQUESTS: Cell<u64> = const { Cell::new(0) };
    }
    let (worker, thread, request) = (process::id(), THREAD.with(|number| *number), REQUESTS.get());
    let heartbeat = HEARTBEATS.get().and_then(|all| all.get(thread as usize - 1));
    heartbeat.inspect(|heartbeat| heartbeat.may_take(REQUEST_TIMEOUT));
    REQUESTS.set(request + 1);
    // Nobody else ever asks this, so an answer to somebody else is noticed.
    let (status, text) = match backends.ask(&format!("request {request} of thread {thread} of worker {worker}")) {
        Ok(connections) => {
            (StatusCode::OK, format!("worker {worker}, thread {thread}, {}\n", backends.list(&connections)))
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("worker {worker}, thread {thread}: {error}\n")),
    };
    heartbeat.inspect(|heartbeat| heartbeat.done());
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if ENDING.load(Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
