//! The watch service: requests of clients to the hub, messages of the hub to clients.
//!
//! ```text
//!  apply ── publish ──► ring ──► hub's thread ──► a queue for each stream ──► the stream's task ──► client
//! ```
//!
//! A stream is one task, that of its response body: polled, it sends what is queued, and reads the next request when
//! there is nothing to send. A client that does not take its messages is not read from either, so it cannot fill the
//! queue with answers to its own requests.

mod hub;
mod outgoing;

pub use hub::{WatchHandle, WatchThread, start};

use super::gate::may_pass;
use super::generated::watch_server::Watch;
use super::wire::{Header, WatchResponse};
use bytes::Bytes;
use e2d_api::etcdserverpb as pb;
use e2d_core::ids::Revision;
use e2d_core::mvcc::range::KeyRange;
use e2d_core::watch::{NewWatch, Refusal, Response, WatchId};
use hub::Request;
use outgoing::{Next, Outgoing};
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status, Streaming};

/// A client that is sent messages without end gets its requests read after so many of them.
const RESPONSES_PER_REQUEST: u32 = 32;

/// What a watch stream asks of the rest of the server.
pub trait Gate: Send + Sync + 'static {
    /// Who a client is, as far as that follows from how it called.
    type Client: Send + 'static;

    /// The header of responses at this moment.
    fn header(&self) -> Header;

    /// Whether this member knows of a leader.
    fn has_leader(&self) -> bool;

    /// Takes from a call what [`Gate::may_watch`] needs. A client that gives no or bad credentials is not refused
    /// here: etcd tells it so when it creates a watch.
    fn client(&self, metadata: &MetadataMap, extensions: &Extensions) -> Self::Client;

    /// Whether a client may read all keys of a range now.
    ///
    /// # Errors
    /// The status that a read of the range would get.
    fn may_watch(&self, client: &Self::Client, range: &KeyRange) -> Result<(), Status>;
}

/// Serves `etcdserverpb.Watch`.
#[derive(Debug)]
pub struct WatchService<G> {
    hub: WatchHandle,
    gate: Arc<G>,
}

impl<G: Gate> WatchService<G> {
    /// A service over a hub.
    pub fn new(hub: WatchHandle, gate: Arc<G>) -> WatchService<G> {
        WatchService { hub, gate }
    }
}

#[tonic::async_trait]
impl<G: Gate> Watch for WatchService<G> {
    type WatchStream = WatchStream<G>;

    async fn watch(
        &self,
        request: tonic::Request<Streaming<pb::WatchRequest>>,
    ) -> Result<tonic::Response<WatchStream<G>>, Status> {
        let (metadata, extensions, requests) = request.into_parts();
        let needs_leader = may_pass(metadata.as_ref(), || self.gate.has_leader())?;
        let client = self.gate.client(&metadata, &extensions);
        let (stream, outgoing) = self.hub.open(needs_leader)?;
        Ok(tonic::Response::new(WatchStream {
            hub: self.hub.clone(),
            gate: self.gate.clone(),
            client,
            stream,
            outgoing,
            requests: Some(requests),
            taken: VecDeque::new(),
            header: Header::default(),
            since_request: 0,
        }))
    }
}

/// The messages of one stream.
pub struct WatchStream<G: Gate> {
    hub: WatchHandle,
    gate: Arc<G>,
    client: G::Client,
    stream: u64,
    outgoing: Arc<Outgoing>,
    /// `None` when the client has sent its last. It is sent messages all the same.
    requests: Option<Streaming<pb::WatchRequest>>,
    taken: VecDeque<Response>,
    /// The header of what was taken.
    header: Header,
    since_request: u32,
}

// The fields are not pinned: each is either free to move or is polled by way of `Pin::new`, which asks for that.
impl<G: Gate> Unpin for WatchStream<G> {}

impl<G: Gate> Stream for WatchStream<G> {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.since_request >= RESPONSES_PER_REQUEST {
                // Even if no request is there: the next look is after as many messages again.
                if let Poll::Ready(Err(status)) = this.poll_request(cx) {
                    return Poll::Ready(Some(Err(status)));
                }
            }
            if let Some(response) = this.taken.pop_front() {
                this.since_request += 1;
                return Poll::Ready(Some(Ok(WatchResponse { header: this.header, response })));
            }
            match this.outgoing.poll_take(cx, &mut this.taken) {
                Poll::Ready(Next::Responses { tell_hub }) => {
                    this.header = this.gate.header();
                    if tell_hub {
                        this.hub.request(this.stream, Request::Taken);
                    }
                }
                Poll::Ready(Next::End(status)) => return Poll::Ready(Some(Err(status))),
                Poll::Pending => {
                    if let Err(status) = ready!(this.poll_request(cx)) {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
            }
        }
    }
}

impl<G: Gate> WatchStream<G> {
    /// Hands the next request to the hub.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.since_request = 0;
        let Some(requests) = &mut self.requests else { return Poll::Pending };
        if !self.outgoing.may_request() {
            return Poll::Pending;
        }
        match ready!(Pin::new(requests).poll_next(cx)) {
            Some(Ok(request)) => {
                if let Some(request) = self.translate(request) {
                    self.outgoing.request();
                    self.hub.request(self.stream, request);
                }
                Poll::Ready(Ok(()))
            }
            Some(Err(status)) => Poll::Ready(Err(status)),
            None => {
                self.requests = None;
                Poll::Pending
            }
        }
    }

    /// A request in the hub's terms. One that says nothing is ignored, as etcd does.
    fn translate(&self, request: pb::WatchRequest) -> Option<Request> {
        match request.request_union? {
            RequestUnion::CreateRequest(create) => Some(match self.new_watch(create) {
                Ok(new) => Request::Create(new),
                Err(refusal) => Request::Refuse(refusal),
            }),
            RequestUnion::CancelRequest(cancel) => Some(Request::Cancel(WatchId(cancel.watch_id))),
            RequestUnion::ProgressRequest(_) => Some(Request::AskProgress),
        }
    }

    fn new_watch(&self, create: pb::WatchCreateRequest) -> Result<NewWatch, Refusal> {
        let start = u64::try_from(create.start_revision).map_err(|_| Refusal::NegativeStart)?;
        // The smallest key, which a client cannot write otherwise: empty ones mean something else.
        let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key };
        let range = KeyRange::from_wire(key, create.range_end);
        // Asked about the range as it will be watched. A `range_end` that is still in its wire form means something
        // else to whoever compares it as a key.
        self.gate.may_watch(&self.client, &range).map_err(|status| {
            Refusal::Denied(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
        })?;
        let filters = |filter: FilterType| create.filters.contains(&(filter as i32));
        Ok(NewWatch {
            range,
            start: (start != 0).then_some(Revision(start)),
            id: (create.watch_id != 0).then_some(WatchId(create.watch_id)),
            with_previous: create.prev_kv,
            without_puts: filters(FilterType::Noput),
            without_deletes: filters(FilterType::Nodelete),
            fragment: create.fragment,
            progress: create.progress_notify,
        })
    }
}

impl<G: Gate> Drop for WatchStream<G> {
    fn drop(&mut self) {
        self.hub.request(self.stream, Request::Close);
    }
}

#[cfg(test)]
mod tests;
