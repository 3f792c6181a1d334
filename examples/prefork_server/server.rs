//! A worker's web server: hyper, on a runtime that starts after the fork.

use crate::Result;
use crate::backend::Backends;
use crate::page;
use forksafe::Deadline;
use forksafe::cluster::{Heartbeat, Listener, Status, Worker};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::cell::Cell;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, process, thread};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// How long a client may take to send a request, and rest between two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a worker that is about to end waits for its clients. The master waits a little longer.
const FAREWELL: Duration = Duration::from_secs(7);

/// What the worker's clients have in common.
struct Site {
    backends: &'static Backends,
    /// By which its threads say until when they will be done.
    heartbeats: Vec<Heartbeat>,
    /// Who wants to know how the cluster stands.
    status: mpsc::Sender<oneshot::Sender<Status>>,
    /// The worker is about to end: each answer asks its client to leave.
    is_ending: AtomicBool,
}

/// Serves HTTP until the worker has to end. HTTP is this thread's work alone; as many others as it has threads wait for the backends.
pub(crate) fn serve(worker: &Worker, backends: &'static Backends) -> Result<()> {
    // Not before the fork: a runtime has threads, and a child has none of its parent's.
    let runtime = runtime::Builder::new_current_thread()
        .max_blocking_threads(worker.threads())
        .thread_keep_alive(Duration::MAX) // Each keeps its number.
        .enable_all()
        .build()?;
    let (tell, told) = oneshot::channel();
    let (status, asked) = mpsc::channel::<oneshot::Sender<Status>>();
    let heartbeats = (0..worker.threads()).map(|thread| worker.heartbeat(thread)).collect();
    let site = Arc::new(Site { backends, heartbeats, status, is_ending: AtomicBool::new(false) });
    thread::scope(|scope| {
        scope.spawn(move || tell.send(worker.shutdown().wait(Deadline::never())));
        scope.spawn(move || asked.into_iter().for_each(|who| drop(who.send(worker.status()))));
        let outcome = runtime.block_on(serve_until(told, worker, site));
        worker.shutdown().request(); // The threads of this scope are waited for, also after an error.
        drop(runtime);
        outcome
    })
}

async fn serve_until(mut end_it: oneshot::Receiver<bool>, worker: &Worker, site: Arc<Site>) -> Result<()> {
    let doors = worker.take_listeners().iter().map(Door::open).collect::<io::Result<Vec<_>>>()?;
    worker.ready();
    let clients = GracefulShutdown::new();
    loop {
        tokio::select! {
            _ = &mut end_it => break,
            accepted = poll_fn(|context| next_client(&doors, context)) => match accepted {
                Ok(client) => attend_to(client, clients.watcher(), &site),
                Err(error) => {
                    eprintln!("worker {}: {error}", process::id());
                    sleep(Duration::from_millis(100)).await; // It may have no descriptor left until some client goes.
                }
            },
        }
    }
    end(doors, clients, &site).await
}

/// Answers everyone who has sent a request, and then closes.
async fn end(doors: Vec<Door>, clients: GracefulShutdown, site: &Arc<Site>) -> Result<()> {
    site.is_ending.store(true, Relaxed);
    // For its client a connection in the kernel's queue is open, and may carry a request. Those that come after the last
    // look are the other workers' to accept. If there are none, the kernel resets them when the listener is closed.
    for door in doors {
        door.close(|client| attend_to(client, clients.watcher(), site))?;
    }
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

/// Where clients come from.
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Client: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Client for T {}

/// Of the first of them that has one.
fn next_client(doors: &[Door], context: &mut Context<'_>) -> Poll<io::Result<Box<dyn Client>>> {
    doors.iter().map(|door| door.poll_accept(context)).find(Poll::is_ready).unwrap_or(Poll::Pending)
}

impl Door {
    fn open(listener: &Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => Ok(Self::Tcp(TcpListener::from_std(listener.try_clone()?)?)),
            Listener::Unix(listener) => Ok(Self::Unix(UnixListener::from_std(listener.try_clone()?)?)),
            other => Err(io::Error::other(format!("what is {other}?"))),
        }
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Box<dyn Client>>> {
        match self {
            Self::Tcp(listener) => listener.poll_accept(context).map_ok(|(client, _)| Box::new(client) as _),
            Self::Unix(listener) => listener.poll_accept(context).map_ok(|(client, _)| Box::new(client) as _),
        }
    }

    /// Lets in who waits there, without the event loop, which may not have heard of them.
    fn close(self, mut let_in: impl FnMut(Box<dyn Client>)) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                let listener = listener.into_std()?;
                while let Ok((client, _)) = listener.accept() {
                    client.set_nonblocking(true)?;
                    let_in(Box::new(TcpStream::from_std(client)?));
                }
            }
            Self::Unix(listener) => {
                let listener = listener.into_std()?;
                while let Ok((client, _)) = listener.accept() {
                    client.set_nonblocking(true)?;
                    let_in(Box::new(UnixStream::from_std(client)?));
                }
            }
        }
        Ok(())
    }
}

/// Answers one client's requests, one after the other, as long as it stays.
fn attend_to(client: Box<dyn Client>, watcher: Watcher, site: &Arc<Site>) {
    let site = Arc::clone(site);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(client), service_fn(move |request| respond(request, Arc::clone(&site))));
    tokio::spawn(watcher.watch(connection)); // That it failed is the client's doing, who knows.
}

async fn respond(request: Request<Incoming>, site: Arc<Site>) -> std::result::Result<Response<String>, Failed> {
    let is_status = request.uri().path() == "/status";
    let (status, kind, text) = if is_status {
        let (tell, told) = oneshot::channel();
        site.status.send(tell)?;
        (StatusCode::OK, "text/html; charset=utf-8", page::page(&told.await?, process::id()))
    } else {
        let site = Arc::clone(&site);
        // The pool makes its callers wait, which must not be the event loop.
        let (status, text) = spawn_blocking(move || answer(&site)).await?;
        (status, "text/plain; charset=utf-8", text)
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if site.is_ending.load(Relaxed) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Asks the backends, and tells who was answered on which connection.
fn answer(site: &Site) -> (StatusCode, String) {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static THREAD: usize = THREADS.fetch_add(1, Relaxed);
        static REQUESTS: Cell<u64> = const { Cell::new(0) };
    }
    let (worker, number, request) = (process::id(), THREAD.with(|number| *number), REQUESTS.get());
    let (heartbeat, thread) = (&site.heartbeats[number], number + 1);
    heartbeat.may_take(REQUEST_TIMEOUT);
    REQUESTS.set(request + 1);
    // Nobody else ever asks this, so an answer to somebody else is noticed.
    let outcome = match site.backends.ask(&format!("request {request} of thread {thread} of worker {worker}")) {
        Ok(connections) => {
            // There is room for one. The last is PostgreSQL's, if it is asked: where connections are dear.
            connections.last().inspect(|number| heartbeat.uses_connection(**number));
            (StatusCode::OK, format!("worker {worker}, thread {thread}, {}\n", site.backends.list(&connections)))
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("worker {worker}, thread {thread}: {error}\n")),
    };
    heartbeat.done();
    outcome
}
