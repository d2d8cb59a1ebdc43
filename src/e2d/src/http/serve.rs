//! One port for both: gRPC over HTTP/2, and the endpoints over HTTP/1.1 or HTTP/2.
//!
//! ```text
//!   Listener::accept ─► Transport::handshake ─► first bytes ─► HTTP/1.1 ──────────────► Endpoints
//!    (one at a time)    (TLS, if any)           tell which     HTTP/2 ─ application/grpc ─► gRPC services
//!                       └── bounded in number and time ──┘           └ else ────────────► Endpoints
//! ```
//!
//! A connection costs a task. Until it has said which HTTP it speaks it also holds a place among the few that may be in
//! their handshake, and has to be done by a deadline: whoever opens connections and says nothing takes no more than that.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tower::ServiceExt as _;
use tower::util::Oneshot;
use tracing::{debug, error, info};

use super::{Answer, Endpoints, Node};
use crate::metrics::Connections;
use crate::metrics::grpc::{Counted, Received, Sent};

/// How connections are treated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a client may take for the handshake and its first bytes.
    pub handshake_timeout: Duration,
    /// How many connections may be in their handshake.
    pub max_handshakes: usize,
    /// How long an HTTP/1.1 client may take for the head of a request, and so be idle. Longer than scrapers wait
    /// between scrapes, or they would find their connection closed.
    pub header_timeout: Duration,
    /// HTTP/2: a client that has sent nothing for so long is asked whether it is still there...
    pub keep_alive_interval: Duration,
    /// ...and has so long to answer.
    pub keep_alive_timeout: Duration,
    /// HTTP/2: calls at a time on one connection; none is no limit.
    pub max_concurrent_streams: Option<u32>,
    /// How long calls may go on after the shutdown has begun.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 1024,
            header_timeout: Duration::from_secs(75),
            keep_alive_interval: Duration::from_secs(2 * 60 * 60),
            keep_alive_timeout: Duration::from_secs(20),
            max_concurrent_streams: None,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Where connections come from.
pub trait Listener: Send {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection and whose it is. Can be dropped without losing one.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, String)>> + Send;
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, String)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Answers are small and complete; waiting for more to send only delays them. A failure means that the client
        // has already gone, which the first read says better.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer.to_string()))
    }
}

/// What lies between the connection and HTTP.
pub trait Transport<I>: Send + Sync + 'static {
    /// What HTTP is spoken on.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Whether it is TLS.
    const SECURE: bool;

    /// Makes the one from the other. [`Settings::handshake_timeout`] limits it.
    fn handshake(&self, io: I) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

/// Nothing in between.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl<I: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport<I> for Plain {
    type Io = I;
    const SECURE: bool = false;

    async fn handshake(&self, io: I) -> io::Result<I> {
        Ok(io)
    }
}

/// The gRPC services and the endpoints, as one service of one connection.
pub struct Service<G, N> {
    grpc: Counted<G>,
    endpoints: Arc<Endpoints<N>>,
}

impl<G, N> Service<G, N> {
    /// Of `grpc`, whose clones have to be cheap since every call takes one, and `endpoints`.
    pub fn new(grpc: Counted<G>, endpoints: Arc<Endpoints<N>>) -> Service<G, N> {
        Service { grpc, endpoints }
    }
}

impl<G: Clone, N> Clone for Service<G, N> {
    fn clone(&self) -> Service<G, N> {
        Service { grpc: self.grpc.clone(), endpoints: Arc::clone(&self.endpoints) }
    }
}

/// What the gRPC services have to be. Implemented for all that are.
pub trait GrpcService:
    tower::Service<Request<Received<Incoming>>, Response = Response<tonic::body::Body>, Error = Infallible>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> GrpcService for S where
    S: tower::Service<Request<Received<Incoming>>, Response = Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// How far the shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Draining,
    Closed,
}

/// Serves connections until `shutdown` is done; then accepts no more, tells HTTP/2 clients to go away, lets calls end
/// for [`Settings::drain_timeout`], closes what is left, and returns. Errors of single connections are theirs alone.
pub async fn serve<L, T, G, N>(
    mut listener: L,
    transport: T,
    service: Service<G, N>,
    settings: Settings,
    connections: Connections,
    shutdown: impl Future<Output = ()> + Send,
) where
    L: Listener,
    T: Transport<L::Io>,
    G: GrpcService,
    G::Future: Send + 'static,
    N: Node,
{
    let handshakes = Arc::new(Semaphore::new(settings.max_handshakes));
    let (stage, _) = watch::channel(Stage::Serving);
    // Every task holds a sender, and nobody ever sends: when all are gone, so are the tasks.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    let shared = Arc::new(Shared { transport, service, settings, connections });
    let mut shutdown = pin!(shutdown);
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                shared.connections.accept_errors.inc();
                let Some(pause) = backoff.after(&error) else { continue };
                tokio::select! {
                    () = tokio::time::sleep(pause) => continue,
                    () = &mut shutdown => break,
                }
            }
        };
        backoff = Backoff::default();
        let Ok(place) = Arc::clone(&handshakes).try_acquire_owned() else {
            shared.connections.refused.inc();
            debug!(peer, "closing a connection: too many others have not sent anything yet");
            continue;
        };
        shared.connections.accepted.inc();
        let (shared, alive, stage) = (Arc::clone(&shared), alive.clone(), stage.subscribe());
        tokio::spawn(async move {
            let _open = Open::new(&shared.connections);
            if let Err(error) = shared.connection(io, place, stage).await {
                debug!(peer, error = &*error, "a connection ended with an error");
            }
            drop(alive);
        });
    }
    drop(listener);
    drop(alive);
    stage.send_replace(Stage::Draining);
    if tokio::time::timeout(shared.settings.drain_timeout, all_gone.recv()).await.is_err() {
        let open = shared.connections.open.get();
        info!(open, "closing connections whose calls have not ended");
        stage.send_replace(Stage::Closed);
        all_gone.recv().await;
    }
}

/// Counts a connection as open for as long as it lives.
struct Open<'a>(&'a Connections);

impl<'a> Open<'a> {
    fn new(connections: &'a Connections) -> Open<'a> {
        connections.open.inc();
        Open(connections)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}

/// How long to wait after a failure to accept.
#[derive(Debug, Default)]
struct Backoff {
    pause: Option<Duration>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(5);
    const LAST: Duration = Duration::from_secs(1);

    /// None if the failure was that of one connection, so that the next may be there already. Else nothing is accepted
    /// until something has been given back (files, memory), and trying at once would only burn the processor.
    fn after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return None;
        }
        if self.pause.is_none() {
            error!(%error, "accepting connections");
        }
        let pause = self.pause.map_or(Backoff::FIRST, |pause| (pause * 2).min(Backoff::LAST));
        self.pause = Some(pause);
        Some(pause)
    }
}

struct Shared<T, G, N> {
    transport: T,
    service: Service<G, N>,
    settings: Settings,
    connections: Connections,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl<T, G, N> Shared<T, G, N> {
    async fn connection<I>(
        &self,
        io: I,
        place: tokio::sync::OwnedSemaphorePermit,
        mut stage: watch::Receiver<Stage>,
    ) -> Result<(), Error>
    where
        T: Transport<I>,
        G: GrpcService,
        G::Future: Send + 'static,
        N: Node,
    {
        let handshake = async { sniff(self.transport.handshake(io).await?).await };
        let sniffed = tokio::select! {
            sniffed = tokio::time::timeout(self.settings.handshake_timeout, handshake) => sniffed,
            // Nothing has been asked yet, so nothing is lost.
            _ = stage.changed() => return Ok(()),
        };
        drop(place);
        let (version, io) = sniffed.map_err(|_| "it said nothing in time")??;
        let service = OfConnection { service: self.service.clone(), secure: T::SECURE };
        let io = TokioIo::new(io);
        match version {
            Version::HTTP_2 => {
                drive(self.http2().serve_connection(io, service), stage, |it| it.graceful_shutdown()).await?
            }
            _ => drive(self.http1().serve_connection(io, service), stage, |it| it.graceful_shutdown()).await?,
        }
        Ok(())
    }

    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.settings.header_timeout);
        builder
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.settings.max_concurrent_streams)
            .keep_alive_interval(self.settings.keep_alive_interval)
            .keep_alive_timeout(self.settings.keep_alive_timeout)
            // No gRPC client looks at it, and it would be in each of their answers.
            .auto_date_header(false);
        builder
    }
}

/// Polls a connection to its end, or until the shutdown cuts it off; tells it (`go_away`) when that begins.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    mut stage: watch::Receiver<Stage>,
    go_away: impl Fn(Pin<&mut C>),
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    // That it began while this connection was in its handshake is no change to this receiver.
    let mut seen = Stage::Serving;
    loop {
        let now = *stage.borrow_and_update();
        if now != seen {
            seen = now;
            match now {
                Stage::Serving => {}
                Stage::Draining => go_away(connection.as_mut()),
                Stage::Closed => return Ok(()),
            }
        }
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            // The sender outlives all connections.
            _ = stage.changed() => {}
        }
    }
}

/// The bytes that an HTTP/2 client begins with, and no HTTP/1.1 client.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads as much as it takes to tell which HTTP it is.
async fn sniff<I: AsyncRead + Unpin>(mut io: I) -> io::Result<(Version, Sniffed<I>)> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    loop {
        let more = io.read(&mut read[len..]).await?;
        len += more;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let version = match (more, read[..len] == PREFACE[..len]) {
            (0, _) | (_, false) => Version::HTTP_11,
            (_, true) if len == PREFACE.len() => Version::HTTP_2,
            (_, true) => continue,
        };
        return Ok((version, Sniffed { read, at: 0, len, io }));
    }
}

/// A connection whose first bytes have been read already.
struct Sniffed<I> {
    read: [u8; PREFACE.len()],
    at: usize,
    len: usize,
    io: I,
}

impl<I: AsyncRead + Unpin> AsyncRead for Sniffed<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.at < self.len {
            let some = (self.len - self.at).min(buf.remaining());
            buf.put_slice(&self.read[self.at..self.at + some]);
            self.at += some;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Sniffed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// [`Service`] as hyper calls it.
struct OfConnection<G, N> {
    service: Service<G, N>,
    secure: bool,
}

impl<G, N> hyper::service::Service<Request<Incoming>> for OfConnection<G, N>
where
    G: GrpcService,
    G::Future: Send + 'static,
    N: Node,
{
    type Response = Response<Either<Sent<tonic::body::Body>, Full<Bytes>>>;
    type Error = Infallible;
    type Future = Answering<Oneshot<Counted<G>, Request<Incoming>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if request.version() == Version::HTTP_2 && is_grpc(request.headers().get(header::CONTENT_TYPE)) {
            return Answering::Grpc { call: self.service.grpc.clone().oneshot(request) };
        }
        let (endpoints, secure) = (Arc::clone(&self.service.endpoints), self.secure);
        Answering::Endpoint { answer: Box::pin(async move { endpoints.answer(request, secure).await }) }
    }
}

/// `application/grpc`, with or without the name of an encoding.
fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    let rest = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

pin_project! {
    #[project = AnsweringProjected]
    enum Answering<F> {
        Grpc { #[pin] call: F },
        Endpoint { answer: Pin<Box<dyn Future<Output = Answer> + Send>> },
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response<Sent<tonic::body::Body>>, Infallible>>,
{
    type Output = Result<Response<Either<Sent<tonic::body::Body>, Full<Bytes>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AnsweringProjected::Grpc { call } => call.poll(cx).map_ok(|answer| answer.map(Either::Left)),
            AnsweringProjected::Endpoint { answer } => {
                answer.as_mut().poll(cx).map(|answer| Ok(answer.map(Either::Right)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
