//! Clients that repeat an operation, the phases they pass, and the window in which everything is counted.
//!
//! All clients run before, in and after the window; an operation counts where it completes. Those under way at the
//! start of the window replace those under way at its end, so that operations and CPU belong to the same time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::process::{Charge, Memory, Process};

/// A number that says what counts at this moment: 0 while warming up, then 1 and up, and [`STOP`].
pub(crate) type Phase = usize;
/// Nothing is recorded.
pub(crate) const WARM_UP: Phase = 0;
/// The one measured phase of most measurements.
pub(crate) const MEASURED: Phase = 1;
/// Clients end after the operation under way.
pub(crate) const STOP: Phase = usize::MAX;

/// The longest latency that is told apart, in microseconds.
const LONGEST_US: u64 = 600_000_000;

/// When a measurement ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// After this time.
    Time(Duration),
    /// After this many operations of all clients together.
    Count(u64),
}

/// The phase that all clients of one measurement see.
#[derive(Debug)]
pub(crate) struct Gate {
    phase: AtomicUsize,
    counted: AtomicU64,
    limit: u64,
    full: Notify,
}

impl Gate {
    pub(crate) fn new(bound: Bound) -> Arc<Self> {
        let limit = match bound {
            Bound::Time(_) => u64::MAX,
            Bound::Count(limit) => limit,
        };
        let (phase, counted, full) = (AtomicUsize::new(WARM_UP), AtomicU64::new(0), Notify::new());
        Arc::new(Self {
            phase,
            counted,
            limit,
            full,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.load(Ordering::Acquire)
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase, Ordering::Release);
    }

    /// Counts against the limit. The operation that reaches it is the last one that counts.
    fn count(&self, operations: u64) {
        // Without a limit nothing is shared among the clients.
        if self.limit == u64::MAX {
            return;
        }
        let counted = self.counted.fetch_add(operations, Ordering::AcqRel) + operations;
        if counted >= self.limit && self.phase() != STOP {
            self.enter(STOP);
            self.full.notify_one();
        }
    }
}

/// The latencies that one client saw, by phase.
#[derive(Debug)]
pub(crate) struct Tally {
    // Two digits and 32-bit counts make 12 KiB for each client and phase, so that a thousand clients do not
    // measure the cache of the machine.
    phases: Vec<Histogram<u32>>,
}

impl Tally {
    /// For the phases 1 to `phases`.
    pub(crate) fn new(phases: usize) -> Self {
        let empty = Histogram::new_with_bounds(1, LONGEST_US, 2)
            .expect("the bounds are constants that fit");
        Self {
            phases: vec![empty; phases],
        }
    }

    /// One operation or event that ended in `phase`, if that phase is measured.
    pub(crate) fn record(&mut self, gate: &Gate, phase: Phase, latency: Duration) {
        if phase == WARM_UP || phase == STOP {
            return;
        }
        if let Some(histogram) = self.phases.get_mut(phase - 1) {
            histogram.saturating_record(
                u64::try_from(latency.as_micros())
                    .unwrap_or(LONGEST_US)
                    .max(1),
            );
            gate.count(1);
        }
    }
}

/// All tallies added up: one histogram of microseconds for each measured phase.
pub(crate) fn merge(tallies: impl IntoIterator<Item = Tally>) -> Result<Vec<Histogram<u64>>> {
    let mut merged: Vec<Histogram<u64>> = Vec::new();
    for tally in tallies {
        for (index, histogram) in tally.phases.into_iter().enumerate() {
            if merged.len() <= index {
                merged.push(
                    Histogram::new_with_bounds(1, LONGEST_US, 2).context("making a histogram")?,
                );
            }
            for bucket in histogram.iter_recorded() {
                let count = u64::from(bucket.count_at_value());
                merged[index]
                    .record_n(bucket.value_iterated_to(), count)
                    .context("adding histograms")?;
            }
        }
    }
    Ok(merged)
}

/// Milliseconds at a quantile; 0.999 is the latency that one operation of a thousand exceeds.
pub(crate) fn quantile_ms(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    if latencies.is_empty() {
        0.0
    } else {
        latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// The longest latency in milliseconds.
pub(crate) fn worst_ms(latencies: &Histogram<u64>) -> f64 {
    if latencies.is_empty() {
        0.0
    } else {
        latencies.max() as f64 / 1000.0
    }
}

/// Something that does one operation at a time, and knows whether the answer was right.
pub(crate) trait Operate: Send + 'static {
    /// Does one operation. An error names it, and ends the whole run.
    fn operate(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Tasks of one measurement. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Running<T> {
    tasks: JoinSet<Result<T>>,
    finished: Vec<T>,
}

impl<T: Send + 'static> Running<T> {
    pub(crate) fn start<F>(tasks: impl IntoIterator<Item = F>) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        Self {
            tasks: tasks.into_iter().collect(),
            finished: Vec::new(),
        }
    }

    /// Does `work` while the tasks run. The first task that fails ends it with that failure.
    pub(crate) async fn beside<W>(&mut self, work: impl Future<Output = Result<W>>) -> Result<W> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(ended) = self.tasks.join_next() => self.finished.push(ended.context("a client task ended")??),
            }
        }
    }

    /// Waits for the tasks to end.
    pub(crate) async fn join(mut self) -> Result<Vec<T>> {
        while let Some(ended) = self.tasks.join_next().await {
            self.finished.push(ended.context("a client task ended")??);
        }
        Ok(self.finished)
    }
}

/// Which phases an operation is recorded in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Attribution {
    /// The phase it completes in: right for rates.
    Completion,
    /// Every phase it began, or completed in: right for stalls, which outlast the phase that causes them.
    Overlap,
}

/// Starts one task for each client; they operate until [`STOP`].
pub(crate) fn clients<O: Operate>(
    gate: &Arc<Gate>,
    phases: usize,
    attribution: Attribution,
    clients: Vec<O>,
) -> Running<Tally> {
    Running::start(clients.into_iter().map(|mut client| {
        let gate = Arc::clone(gate);
        async move {
            let mut tally = Tally::new(phases);
            loop {
                let began_in = gate.phase();
                if began_in == STOP {
                    return Ok(tally);
                }
                let began = Instant::now();
                client.operate().await?;
                let (latency, ended_in) = (began.elapsed(), gate.phase());
                tally.record(&gate, ended_in, latency);
                if attribution == Attribution::Overlap && began_in != ended_in {
                    tally.record(&gate, began_in, latency);
                }
            }
        }
    }))
}

/// How long to warm up and to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) warm_up: Duration,
    pub(crate) bound: Bound,
}

/// What the window cost, apart from the latencies that the clients know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed {
    pub(crate) elapsed: Duration,
    pub(crate) server: Charge,
    pub(crate) generator: Charge,
    /// At the end of the window.
    pub(crate) memory: Memory,
}

/// Lets the clients warm up, opens the window, closes it, and stops them.
pub(crate) async fn observe(server: &Process, gate: &Gate, plan: &Plan) -> Result<Observed> {
    tokio::time::sleep(plan.warm_up).await;
    let generator = Process::own();
    let (server_before, generator_before) = (server.usage()?, generator.usage()?);
    let began = Instant::now();
    gate.enter(MEASURED);
    match plan.bound {
        Bound::Time(time) => tokio::time::sleep(time).await,
        Bound::Count(_) => gate.full.notified().await,
    }
    gate.enter(STOP);
    let elapsed = began.elapsed();
    let (server_after, generator_after) = (server.usage()?, generator.usage()?);
    Ok(Observed {
        elapsed,
        server: server_after.since(&server_before),
        generator: generator_after.since(&generator_before),
        memory: server.memory()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(Arc<AtomicU64>, Option<u64>);

    impl Operate for Counter {
        async fn operate(&mut self) -> Result<()> {
            tokio::task::yield_now().await;
            let done = self.0.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(Some(done) != self.1, "operation {done} refused");
            Ok(())
        }
    }

    fn counters(fails_at: Option<u64>) -> Vec<Counter> {
        let done = Arc::new(AtomicU64::new(0));
        (0..4)
            .map(|_| Counter(Arc::clone(&done), fails_at))
            .collect()
    }

    #[tokio::test]
    async fn a_count_bounds_the_window() {
        let plan = Plan {
            warm_up: Duration::ZERO,
            bound: Bound::Count(1000),
        };
        let gate = Gate::new(plan.bound);
        let mut running = clients(&gate, 1, Attribution::Completion, counters(None));
        running
            .beside(observe(&Process::own(), &gate, &plan))
            .await
            .unwrap();
        let latencies = merge(running.join().await.unwrap()).unwrap();
        assert_eq!(latencies.len(), 1);
        assert_eq!(latencies[0].len(), 1000);
    }

    #[tokio::test]
    async fn one_failed_operation_fails_the_run() {
        let plan = Plan {
            warm_up: Duration::ZERO,
            bound: Bound::Count(1_000_000),
        };
        let gate = Gate::new(plan.bound);
        let mut running = clients(&gate, 1, Attribution::Completion, counters(Some(500)));
        let error = running
            .beside(observe(&Process::own(), &gate, &plan))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "operation 500 refused");
    }

    #[test]
    fn warm_up_and_afterwards_do_not_count() {
        let gate = Gate::new(Bound::Time(Duration::ZERO));
        let mut tally = Tally::new(2);
        for phase in [WARM_UP, STOP, 3] {
            tally.record(&gate, phase, Duration::from_millis(1));
        }
        tally.record(&gate, 2, Duration::from_millis(20));
        let merged = merge([tally]).unwrap();
        assert_eq!(
            merged.iter().map(Histogram::len).collect::<Vec<_>>(),
            [0, 1]
        );
    }

    #[test]
    fn merged_quantiles_are_those_of_all_clients() {
        let gate = Gate::new(Bound::Time(Duration::ZERO));
        let tallies = (0..10u64).map(|client| {
            let mut tally = Tally::new(1);
            for i in 0..100 {
                tally.record(&gate, MEASURED, Duration::from_micros(client * 100 + i + 1));
            }
            tally
        });
        let merged = merge(tallies.collect::<Vec<_>>()).unwrap();
        for (quantile, ms) in [(0.5, 0.5), (0.99, 0.99), (0.999, 0.999)] {
            let found = quantile_ms(&merged[0], quantile);
            assert!(
                (found / ms - 1.0).abs() < 0.02,
                "p{quantile}: {found} ms, expected {ms}"
            );
        }
        assert!((worst_ms(&merged[0]) - 1.0).abs() < 0.02);
    }

    #[test]
    fn an_empty_histogram_has_no_latency() {
        let merged = merge([Tally::new(1)]).unwrap();
        assert_eq!(
            (quantile_ms(&merged[0], 0.5), worst_ms(&merged[0])),
            (0.0, 0.0)
        );
    }
}
