//! One of the two servers: takes steps, and remembers what its watches said.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use e2d_api::etcdserverpb::{HashKvRequest, LeaseLeasesRequest, WatchCreateRequest, WatchResponse};

use super::step::{Answer, Masked, Said, Step};
use crate::client::*;
use crate::server::Server;

/// Within this time every step is answered. A server gives up by itself after 7 s.
const STEP_PATIENCE: Duration = Duration::from_secs(10);

pub struct Side {
    server: Server,
    client: Client,
    streams: BTreeMap<usize, Stream>,
    said: BTreeMap<(usize, i64), Vec<Said>>,
    revision: i64,
    compacted: i64,
    /// By hashed and compacted revision.
    hashes: HashMap<(i64, i64), u32>,
    broken: Option<String>,
}

struct Stream {
    conversation: WatchStream,
    /// The start revision of the watch that is being created.
    creating: i64,
    live: BTreeMap<i64, Watched>,
    /// The revision up to which progress was granted last.
    progress: i64,
}

struct Watched {
    start: i64,
    /// Every event up to here has been promised to be told. A watch that begins in the past after the stream was granted
    /// progress has not been promised anything yet.
    promised: i64,
    /// The last revision told.
    last: i64,
    /// The rest of `last` is still to come.
    fragment: bool,
}

/// Why a step could not be taken to its end.
struct Stopped(Answer);

impl Side {
    pub async fn new(server: Server) -> Side {
        Side {
            client: server.client().await,
            server,
            streams: BTreeMap::new(),
            said: BTreeMap::new(),
            revision: 1,
            compacted: 0,
            hashes: HashMap::new(),
            broken: None,
        }
    }

    pub async fn take(&mut self, step: &Step) -> Answer {
        // Stopping and starting has a limit of its own.
        let patience = if matches!(step, Step::Restart { .. }) {
            Duration::from_secs(180)
        } else {
            STEP_PATIENCE
        };
        let answer = match tokio::time::timeout(patience, self.try_take(step)).await {
            Ok(Ok(answer)) | Ok(Err(Stopped(answer))) => answer,
            Err(_) => Answer::Silent,
        };
        match self.broken.take() {
            Some(rule) => Answer::Broken(rule),
            None => answer,
        }
    }

    async fn try_take(&mut self, step: &Step) -> Result<Answer, Stopped> {
        let client = &self.client;
        let answer = match step.clone() {
            Step::Range(request) => Answer::of(client.range(request).await, Answer::Range),
            Step::Put(request) => Answer::of(client.put(request).await, Answer::Put),
            Step::Delete(request) => Answer::of(client.delete(request).await, Answer::Delete),
            Step::Txn(request) => Answer::of(client.txn(request).await, Answer::Txn),
            Step::Grant(request) => Answer::of(client.grant_request(request).await, Answer::Grant),
            Step::Revoke(request) => {
                Answer::of(client.revoke_request(request).await, Answer::Revoke)
            }
            Step::KeepAlive(request) => {
                Answer::of(client.keep_alive(request.id).await, Answer::KeepAlive)
            }
            Step::TimeToLive(request) => Answer::of(
                client.time_to_live_request(request).await,
                Answer::TimeToLive,
            ),
            Step::Leases => Answer::of(
                client.leases_request(LeaseLeasesRequest {}).await,
                Answer::Leases,
            ),
            Step::Alarm(request) => Answer::of(client.alarm_request(request).await, Answer::Alarm),
            Step::HashKv(request) => self.hash_kv(request).await,
            Step::Compact(request) => {
                // A compaction takes away what a late watch would have been told, so none may be late.
                self.settle_all().await?;
                let answer =
                    Answer::of(self.client.compact_request(request).await, Answer::Compact);
                if matches!(answer, Answer::Compact(_)) {
                    self.compacted = request.revision;
                }
                answer
            }
            Step::Watch { stream, create } => self.watch(stream, create).await?,
            Step::Cancel { stream, watch_id } => self.cancel(stream, watch_id).await?,
            Step::Progress { stream } => {
                if let Some(stream) = self.streams.get(&stream) {
                    stream.conversation.send_progress();
                }
                Answer::Nothing
            }
            Step::ProgressAlone { .. } => {
                let mut conversation = self.client.watch_stream();
                conversation.send_progress();
                conversation.send_create(watch("a"));
                let first = conversation.next().await.map_err(Stopped::refused)?;
                Answer::Progress(first.watch_id == -1 && !first.created)
            }
            Step::Restart { kill } => {
                self.settle_all().await?;
                self.streams.clear();
                if kill {
                    self.server.kill();
                } else {
                    self.server.terminate().await;
                }
                self.server.restart().await;
                self.client = self.server.client().await;
                Answer::Nothing
            }
            Step::Settle => {
                self.settle_all().await?;
                Answer::Watches(std::mem::take(&mut self.said))
            }
        };
        self.revision = self.revision.max(answer.revision().unwrap_or(0));
        Ok(answer)
    }

    async fn hash_kv(&mut self, request: HashKvRequest) -> Answer {
        let answer = self.client.hash_kv_request(request).await;
        if let Ok(answer) = &answer {
            let before = *self
                .hashes
                .entry((answer.hash_revision, answer.compact_revision))
                .or_insert(answer.hash);
            if before != answer.hash {
                self.broken = Some(format!("HashKV said {before} before and now {answer:?}"));
            }
        }
        Answer::of(answer, Answer::HashKv)
    }

    async fn watch(
        &mut self,
        number: usize,
        create: WatchCreateRequest,
    ) -> Result<Answer, Stopped> {
        let stream = self.streams.entry(number).or_insert_with(|| Stream {
            conversation: self.client.watch_stream(),
            creating: 0,
            live: BTreeMap::new(),
            progress: 0,
        });
        let start = create.start_revision;
        stream.creating = start;
        stream.conversation.send_create(create);
        let created = loop {
            let message = self.hear(number).await?;
            if message.created {
                break message;
            }
        };
        if !created.canceled && start > 0 && start < self.compacted {
            // It is about to be canceled. The next steps are to find that done.
            loop {
                let message = self.hear(number).await?;
                if message.canceled && message.watch_id == created.watch_id {
                    break;
                }
            }
            // etcd forgets such a watch only when the client cancels it as well: until then its id stays taken, and
            // the stream is never granted progress again.
            self.stream(number)
                .conversation
                .send_cancel(created.watch_id);
        }
        Ok(Answer::Nothing)
    }

    async fn cancel(&mut self, number: usize, watch_id: i64) -> Result<Answer, Stopped> {
        if !self
            .streams
            .get(&number)
            .is_some_and(|stream| stream.live.contains_key(&watch_id))
        {
            if let Some(stream) = self.streams.get(&number) {
                stream.conversation.send_cancel(watch_id);
            }
            return Ok(Answer::Nothing);
        }
        self.settle(number).await?;
        self.streams[&number].conversation.send_cancel(watch_id);
        loop {
            let message = self.hear(number).await?;
            if message.canceled && message.watch_id == watch_id {
                return Ok(Answer::Nothing);
            }
        }
    }

    async fn settle_all(&mut self) -> Result<(), Stopped> {
        let streams: BTreeSet<usize> = self.streams.keys().copied().collect();
        for stream in streams {
            self.settle(stream).await?;
        }
        Ok(())
    }

    /// Returns when every watch of the stream has been told everything, which the server states by granting progress.
    async fn settle(&mut self, number: usize) -> Result<(), Stopped> {
        let stream = &self.streams[&number];
        if stream.live.is_empty() {
            return Ok(());
        }
        // Progress is withheld while a watch waits for a revision that is yet to come.
        let start = stream
            .live
            .values()
            .map(|watched| watched.start)
            .max()
            .unwrap_or(0);
        while self.revision < start {
            let answer = self
                .client
                .put(put("filler", ""))
                .await
                .map_err(Stopped::refused)?;
            self.revision = revision(&answer.header);
        }
        while self.stream(number).progress < self.revision {
            self.stream(number).conversation.send_progress();
            // Progress that cannot be granted yet is not answered at all, so it is asked for again and again.
            while let Some(message) = self
                .stream(number)
                .conversation
                .next_within(Duration::from_millis(20))
                .await
            {
                let message = message.map_err(Stopped::refused)?;
                let progress = message.watch_id == -1;
                self.note(number, message);
                if progress {
                    break;
                }
            }
        }
        Ok(())
    }

    fn stream(&mut self, number: usize) -> &mut Stream {
        self.streams
            .get_mut(&number)
            .expect("a step opens a stream before it uses it")
    }

    async fn hear(&mut self, number: usize) -> Result<WatchResponse, Stopped> {
        let message = self
            .stream(number)
            .conversation
            .next()
            .await
            .map_err(Stopped::refused)?;
        self.note(number, message.clone());
        Ok(message)
    }

    /// Writes down what a message says, and checks what must hold of any message.
    fn note(&mut self, number: usize, message: WatchResponse) {
        let id = message.watch_id;
        match self.stream(number).hear(message) {
            Ok(said) if said.is_empty() => {}
            Ok(said) => self.said.entry((number, id)).or_default().extend(said),
            Err(rule) => self.broken = Some(format!("stream {number}, watch {id}: {rule}")),
        }
    }
}

impl Stream {
    /// What the message says about its watch, or which rule it breaks.
    fn hear(&mut self, mut message: WatchResponse) -> Result<Vec<Said>, String> {
        let at = revision(&message.header);
        message.mask();
        if message.created {
            if !message.canceled {
                let watched = Watched {
                    start: self.creating,
                    promised: 0,
                    last: 0,
                    fragment: false,
                };
                self.live.insert(message.watch_id, watched);
            }
            return Ok(vec![Said::Created(message)]);
        }
        if message.canceled {
            // Where it was no longer live, this answers the cancel that follows a cancellation by the server.
            let was_live = self.live.remove(&message.watch_id).is_some();
            return Ok(if was_live {
                vec![Said::Canceled(message)]
            } else {
                Vec::new()
            });
        }
        if message.events.is_empty() {
            if message.watch_id == -1 {
                self.progress = self.progress.max(at);
                for watched in self.live.values_mut() {
                    watched.promised = at;
                }
            }
            return Ok(Vec::new());
        }
        let Some(watched) = self.live.get_mut(&message.watch_id) else {
            return Err(format!("events of no watch: {message:?}"));
        };
        let revisions = || {
            message
                .events
                .iter()
                .filter_map(|event| event.kv.as_ref())
                .map(|kv| kv.mod_revision)
        };
        let (first, last) = (
            revisions().next().unwrap_or(0),
            revisions().next_back().unwrap_or(0),
        );
        if first <= watched.promised {
            return Err(format!(
                "an event after progress to {} had been granted: {message:?}",
                watched.promised
            ));
        }
        if first < watched.last || !revisions().is_sorted() {
            return Err(format!(
                "events out of order after revision {}: {message:?}",
                watched.last
            ));
        }
        if first == watched.last && !watched.fragment {
            return Err(format!(
                "revision {first} split over two messages: {message:?}"
            ));
        }
        watched.last = last;
        watched.fragment = message.fragment;
        Ok(message.events.into_iter().map(Said::Event).collect())
    }
}

impl Stopped {
    fn refused(status: tonic::Status) -> Stopped {
        Stopped(Answer::Refused(status.code(), status.message().to_owned()))
    }
}
