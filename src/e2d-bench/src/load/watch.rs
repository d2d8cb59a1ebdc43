//! Watch fan-out: a few writers, many watchers of the whole prefix, and every watcher must see every event in order.
//!
//! An operation is one event delivered to one watcher; its latency runs from before the put to the event's arrival,
//! by a time stamp in the value. Writers stop ahead of the watchers by at most [`AHEAD`] puts, so that the load
//! settles at what the server delivers and its queues stay bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use e2d_api::etcdserverpb::watch_request::RequestUnion;
use e2d_api::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use e2d_api::mvccpb::Event;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use tonic::Streaming;

use super::keys::{VALUE_BYTES, prefix_end};
use super::{Cell, Load};
use crate::connection::Connection;
use crate::measure::{self, Gate, Plan, Running, STOP, Tally};
use crate::report::Figures;
use crate::server::Server;

const PREFIX: &str = "/registry/watched/";
/// The put after all others; whoever sees it has seen everything.
const LAST_KEY: &str = "/registry/watched/last";
/// Puts that not all watchers have seen.
const AHEAD: usize = 64;
/// For the events that are under way when the writers stop.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(cell: &Cell<'_>, server: &Server, plan: &Plan) -> Result<Figures> {
    let one_stream = cell.load == Load::WatchOneStream;
    let gate = Gate::new(plan.bound);
    let shared = Arc::new(Shared {
        gate: Arc::clone(&gate),
        origin: Instant::now(),
        watchers: cell.clients as u64,
        delivered: AtomicU64::new(0),
        credit: Semaphore::new(AHEAD),
    });
    let connections = Connection::open_many(
        server.address(),
        if one_stream { 1 } else { cell.connections },
    )
    .await?;
    // The writers' connections are their own: a put must not queue behind the events of a thousand watchers.
    let writing = Connection::open_many(server.address(), cell.writers.clamp(1, 8)).await?;

    let (streams, watches) = if one_stream {
        (1, cell.clients)
    } else {
        (cell.clients, 1)
    };
    let mut readers = Vec::with_capacity(streams);
    for (number, connection) in connections.iter().cycle().take(streams).enumerate() {
        readers.push(Reader::open(number, watches, connection, Arc::clone(&shared)).await?);
    }
    let mut watchers = Running::start(readers.into_iter().map(Reader::read));
    let mut writers = Running::start(
        writing
            .iter()
            .cycle()
            .take(cell.writers)
            .enumerate()
            .map(|(n, c)| write(n, c.clone(), Arc::clone(&shared))),
    );

    let observed = watchers
        .beside(writers.beside(measure::observe(server.process(), &gate, plan)))
        .await?;
    let sent: u64 = watchers.beside(writers.join()).await?.into_iter().sum();
    let last = put_request(LAST_KEY.into(), shared.origin);
    watchers
        .beside(async { writing[0].kv().put(last).await.context("the last Put") })
        .await?;
    let ended = tokio::time::timeout(CATCH_UP_WITHIN, watchers.join()).await;
    let ended = ended.map_err(|_| {
        anyhow!("not every watcher saw all {sent} puts within {CATCH_UP_WITHIN:?}")
    })??;

    let mut tallies = Vec::with_capacity(ended.len());
    for (number, (tally, received)) in ended.into_iter().enumerate() {
        for count in received {
            ensure!(
                count == sent,
                "a watcher of stream {number} saw {count} events, expected {sent}"
            );
        }
        tallies.push(tally);
    }
    Figures::new(&measure::merge(tallies)?[0], &observed)
}

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    origin: Instant,
    watchers: u64,
    delivered: AtomicU64,
    credit: Semaphore,
}

impl Shared {
    /// Every put that all watchers together have seen lets the writers do one more.
    fn delivered(&self, events: u64) {
        let before = self.delivered.fetch_add(events, Ordering::Relaxed);
        let credit = (before + events) / self.watchers - before / self.watchers;
        if credit > 0 {
            self.credit.add_permits(credit as usize);
        }
    }
}

/// Puts until the gate says stop. Returns the number of puts.
async fn write(number: usize, connection: Connection, shared: Arc<Shared>) -> Result<u64> {
    let mut kv = connection.kv();
    let key = Bytes::from(format!("{PREFIX}{number:08}"));
    let mut sent = 0;
    while shared.gate.phase() != STOP {
        shared
            .credit
            .acquire()
            .await
            .context("waiting for the watchers")?
            .forget();
        kv.put(put_request(key.clone(), shared.origin))
            .await
            .with_context(|| format!("Put by writer {number}"))?;
        sent += 1;
    }
    Ok(sent)
}

/// A value of the usual size that begins with the nanoseconds since `origin`.
fn put_request(key: Bytes, origin: Instant) -> PutRequest {
    let mut value = BytesMut::with_capacity(VALUE_BYTES);
    value.put_u64(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    value.resize(VALUE_BYTES, b'.');
    PutRequest {
        key,
        value: value.freeze(),
        ..Default::default()
    }
}

/// One watch stream with one or more watches of the prefix.
#[derive(Debug)]
struct Reader {
    number: usize,
    stream: Streaming<WatchResponse>,
    watches: Vec<Watch>,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watch {
    received: u64,
    revision: i64,
    ended: bool,
}

impl Reader {
    /// Opens the stream and waits until the server has created all watches.
    async fn open(
        number: usize,
        watches: usize,
        connection: &Connection,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let create = move |_| {
            let create = WatchCreateRequest {
                key: PREFIX.into(),
                range_end: prefix_end(PREFIX),
                ..Default::default()
            };
            WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(create)),
            }
        };
        // The request stream stays open for as long as the watches shall.
        let requests = tokio_stream::iter((0..watches).map(create)).chain(tokio_stream::pending());
        let stream = connection
            .watch()
            .watch(requests)
            .await
            .with_context(|| format!("Watch stream {number}"))?;
        let mut reader = Self {
            number,
            stream: stream.into_inner(),
            watches: vec![Watch::default(); watches],
            shared,
        };
        for _ in 0..watches {
            let response = reader.next().await?;
            ensure!(
                response.created && (0..watches as i64).contains(&response.watch_id),
                "watch stream {number}: a created watch below {watches} expected, found watch {} created {} canceled {} {:?}",
                response.watch_id,
                response.created,
                response.canceled,
                response.cancel_reason
            );
        }
        Ok(reader)
    }

    async fn next(&mut self) -> Result<WatchResponse> {
        match self.stream.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => bail!("watch stream {} was ended by the server", self.number),
            Err(status) => Err(status).with_context(|| format!("watch stream {}", self.number)),
        }
    }

    /// Reads until every watch has seen the last put. Returns the latencies, and for each watch the number of events.
    async fn read(mut self) -> Result<(Tally, Vec<u64>)> {
        let mut tally = Tally::new(1);
        let mut open = self.watches.len();
        while open > 0 {
            let response = self.next().await?;
            let now = self.shared.origin.elapsed();
            let phase = self.shared.gate.phase();
            ensure!(
                !response.canceled,
                "watch stream {} was canceled: {}",
                self.number,
                response.cancel_reason
            );
            let watch = usize::try_from(response.watch_id)
                .ok()
                .and_then(|id| self.watches.get_mut(id));
            let watch = watch.ok_or_else(|| {
                anyhow!("no watch {} on stream {}", response.watch_id, self.number)
            })?;
            let mut delivered = 0;
            for event in &response.events {
                let sent = watch
                    .see(event)
                    .with_context(|| format!("watch stream {}", self.number))?;
                if watch.ended {
                    open -= 1;
                } else {
                    delivered += 1;
                    tally.record(&self.shared.gate, phase, now.saturating_sub(sent));
                }
            }
            self.shared.delivered(delivered);
        }
        Ok((
            tally,
            self.watches.iter().map(|watch| watch.received).collect(),
        ))
    }
}

impl Watch {
    /// Checks the order, and returns when the put was sent.
    fn see(&mut self, event: &Event) -> Result<Duration> {
        let pair = event
            .kv
            .as_ref()
            .ok_or_else(|| anyhow!("an event without a key"))?;
        ensure!(
            !self.ended,
            "an event at revision {} after the last put",
            pair.mod_revision
        );
        ensure!(
            pair.mod_revision > self.revision,
            "an event at revision {} after one at revision {}",
            pair.mod_revision,
            self.revision
        );
        self.revision = pair.mod_revision;
        let stamp = pair
            .value
            .first_chunk::<8>()
            .ok_or_else(|| anyhow!("a value without a time stamp"))?;
        if pair.key == LAST_KEY.as_bytes() {
            self.ended = true;
        } else {
            self.received += 1;
        }
        Ok(Duration::from_nanos(u64::from_be_bytes(*stamp)))
    }
}

#[cfg(test)]
mod tests {
    use e2d_api::mvccpb::KeyValue;

    use super::*;

    fn event(key: &'static str, mod_revision: i64) -> Event {
        let value = put_request(key.into(), Instant::now()).value;
        let kv = KeyValue {
            key: key.into(),
            value,
            mod_revision,
            ..Default::default()
        };
        Event {
            kv: Some(kv),
            ..Default::default()
        }
    }

    #[test]
    fn a_watch_refuses_repeated_and_reordered_events() {
        let mut watch = Watch::default();
        watch.see(&event("/registry/watched/1", 5)).unwrap();
        let error = watch
            .see(&event("/registry/watched/1", 5))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "an event at revision 5 after one at revision 5");
        assert!(watch.see(&event("/registry/watched/2", 4)).is_err());
        watch.see(&event(LAST_KEY, 6)).unwrap();
        assert!(watch.ended && watch.received == 1);
        assert!(watch.see(&event("/registry/watched/2", 7)).is_err());
    }

    #[test]
    fn writers_get_one_credit_for_each_put_that_all_have_seen() {
        let gate = Gate::new(measure::Bound::Count(1));
        let (delivered, credit) = (AtomicU64::new(0), Semaphore::new(0));
        let shared = Shared {
            gate,
            origin: Instant::now(),
            watchers: 10,
            delivered,
            credit,
        };
        for (events, credits) in [(9, 0), (1, 1), (25, 3), (5, 4)] {
            shared.delivered(events);
            assert_eq!(shared.credit.available_permits(), credits);
        }
    }
}
