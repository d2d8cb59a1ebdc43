//! The same random requests go to a real etcd and to the server under test, and every answer must be the same.
//!
//! A seed determines the requests. Ids, terms and remaining times are masked, see [`Masked`]; what e2d does differently
//! on purpose stands in [`known_difference`] and nowhere else. Watches run all the time; their events are compared
//! whenever both sides have [settled](Side::settle), per watch and in order.
//!
//! `E2D_DIFF_STEPS` and `E2D_DIFF_SEEDS` set the amount, `E2D_DIFF_FIRST_SEED` where to begin. The seeds in `seeds.txt`
//! always run first.

mod generator;
mod side;
mod step;

use std::collections::BTreeMap;
use std::env;
use std::fmt::{self, Debug};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2d_api::mvccpb::KeyValue;

use e2d_api::etcdserverpb::compare::{CompareResult, TargetUnion};
use e2d_api::etcdserverpb::request_op::Request as Op;
use e2d_api::etcdserverpb::{AlarmRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest};

use self::generator::Generator;
use self::side::Side;
use self::step::{Answer, Said, Step};
use crate::client::*;
use crate::server::{Program, Server, skip};

/// How long the search for a smaller sequence may take.
const SHRINKING: Duration = Duration::from_secs(90);

/// Why these two answers may differ, where e2d does so on purpose. What else they say must still be the same.
fn known_difference(step: &Step, reference: &Answer, subject: &Answer) -> Option<&'static str> {
    let unsorted = |range: &RangeRequest| range.limit > 0 && range.sort_order == 0 && range.sort_target != 0;
    let wrong_keys =
        "with a limit and a sort target but no order, etcd cuts before it sorts, so its keys are not the first";
    match (step, reference, subject) {
        (Step::Range(range), Answer::Range(theirs), Answer::Range(ours)) if unsorted(range) => {
            let same = (&theirs.header, theirs.count, theirs.more, theirs.kvs.len())
                == (&ours.header, ours.count, ours.more, ours.kvs.len());
            same.then_some(wrong_keys)
        }
        (Step::Range(range), Answer::Range(theirs), Answer::Range(ours)) if range.sort_target != 0 => {
            let said = |range: &RangeResponse| (range.header, range.count, range.more, range.kvs.len());
            let order = |answer: &RangeResponse| -> Vec<(i64, Bytes)> {
                answer.kvs.iter().map(|kv| sorted_by(range.sort_target, kv)).collect()
            };
            let same = said(theirs) == said(ours) && order(theirs) == order(ours);
            same.then_some("etcd's sort is not stable: records that are equal in the target come in any order")
        }
        (Step::Txn(txn), Answer::Txn(theirs), Answer::Txn(ours))
            if ranges(txn).iter().any(|range| range.sort_target != 0) =>
        {
            let same = (&theirs.header, theirs.succeeded, theirs.responses.len())
                == (&ours.header, ours.succeeded, ours.responses.len());
            same.then_some(wrong_keys)
        }
        (Step::Compact(request), Answer::Silent, Answer::Compact(_)) if request.physical => {
            Some("etcd 3.6 leaves some physical compactions without an answer")
        }
        (Step::HashKv(request), Answer::HashKv(_), Answer::Refused(code, text)) if request.revision < 0 => {
            let refused = (*code, text.as_str()) == (tonic::Code::OutOfRange, COMPACTED);
            refused.then_some(
                "etcd answers a negative revision with a hash of 0, which members could agree on by accident",
            )
        }
        _ => None,
    }
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// What a record is sorted by.
fn sorted_by(target: i32, kv: &KeyValue) -> (i64, Bytes) {
    match target {
        1 => (kv.version, Bytes::new()),
        2 => (kv.create_revision, Bytes::new()),
        3 => (kv.mod_revision, Bytes::new()),
        _ => (0, kv.value.clone()),
    }
}

/// All ranges of a transaction, in both branches and at any depth.
fn ranges(txn: &TxnRequest) -> Vec<&RangeRequest> {
    let mut found = Vec::new();
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Op::RequestRange(range)) => found.push(range),
            Some(Op::RequestTxn(txn)) => found.extend(ranges(txn)),
            _ => {}
        }
    }
    found
}

/// Where the two sides parted.
#[derive(Debug)]
struct Difference {
    at: usize,
    step: Step,
    reference: Answer,
    subject: Answer,
}

/// What one run found.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<Step>,
    /// How many steps of each kind were taken, and how many of them the reference refused.
    kinds: BTreeMap<String, (usize, usize)>,
    events: usize,
    known: usize,
    difference: Option<Difference>,
}

/// Where steps come from: the generator looks at the answers of the reference, a recording repeats itself.
enum Source<'a> {
    Seed { generator: Box<Generator>, count: usize },
    Recording(&'a [Step]),
}

impl Source<'_> {
    fn next(&mut self, at: usize) -> Option<Step> {
        match self {
            // What is left to settle is compared at the end.
            Source::Seed { count, .. } if at >= *count => (at == *count).then_some(Step::Settle),
            Source::Seed { generator, .. } => Some(generator.next()),
            Source::Recording(steps) => steps.get(at).cloned(),
        }
    }

    fn learn(&mut self, step: &Step, answer: &Answer) {
        if let Source::Seed { generator, .. } = self {
            generator.learn(step, answer);
        }
    }
}

async fn run(reference: &Program, subject: &Program, mut source: Source<'_>) -> Report {
    let (left, right) = tokio::join!(Server::start(reference.clone(), &[]), Server::start(subject.clone(), &[]));
    let (mut left, mut right) = (Side::new(left).await, Side::new(right).await);
    let mut report = Report::default();
    while let Some(step) = source.next(report.steps.len()) {
        let (reference, subject) = tokio::join!(left.take(&step), right.take(&step));
        source.learn(&step, &reference);
        report.steps.push(step.clone());
        let refused = usize::from(matches!(reference, Answer::Refused(..)));
        let (kind_taken, kind_refused) = report.kinds.entry(kind(&step)).or_default();
        *kind_taken += 1;
        *kind_refused += refused;
        report.events += reference.events();
        // Where both are silent or break a rule, being alike is no excuse.
        let sound = !matches!(reference, Answer::Silent | Answer::Broken(_));
        if reference == subject && sound {
            continue;
        }
        if known_difference(&step, &reference, &subject).is_some() {
            report.known += 1;
            continue;
        }
        report.difference = Some(Difference { at: report.steps.len() - 1, step, reference, subject });
        break;
    }
    report
}

/// Leaves out whatever does not take the difference away, as far as it gets in a fixed time.
async fn shrink(reference: &Program, subject: &Program, mut report: Report) -> Report {
    let mut chunk = report.steps.len() / 2;
    let end = Instant::now() + SHRINKING;
    while chunk > 0 {
        let mut start = 0;
        while start < report.steps.len() {
            if Instant::now() > end {
                return report;
            }
            let mut fewer = report.steps.clone();
            fewer.drain(start..(start + chunk).min(fewer.len()));
            let again = run(reference, subject, Source::Recording(&fewer)).await;
            if again.difference.is_some() {
                report = again;
            } else {
                start += chunk;
            }
        }
        chunk /= 2;
    }
    report
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}: {}", self.at, brief(&self.step))?;
        let (Answer::Watches(theirs), Answer::Watches(ours)) = (&self.reference, &self.subject) else {
            return write!(f, "  reference: {}\n  subject: {}", brief(&self.reference), brief(&self.subject));
        };
        // Of all that was said, only where each watch parts.
        for id in theirs.keys().chain(ours.keys().filter(|id| !theirs.contains_key(id))) {
            let said = |side: &BTreeMap<(usize, i64), Vec<Said>>| side.get(id).cloned().unwrap_or_default();
            let (theirs, ours) = (said(theirs), said(ours));
            if theirs == ours {
                continue;
            }
            let alike = theirs.iter().zip(&ours).take_while(|(a, b)| a == b).count();
            writeln!(f, "  stream {}, watch {}: alike for {alike}, then", id.0, id.1)?;
            writeln!(f, "    reference: {} of {}", brief(&theirs.get(alike)), theirs.len())?;
            writeln!(f, "    subject: {} of {}", brief(&ours.get(alike)), ours.len())?;
        }
        Ok(())
    }
}

async fn compare_seed(reference: &Program, subject: &Program, seed: u64, count: usize) {
    let begin = Instant::now();
    let generator = Box::new(Generator::new(seed));
    let report = run(reference, subject, Source::Seed { generator, count }).await;
    let Some(difference) = &report.difference else {
        let kinds = report.kinds.iter().map(|(kind, (taken, refused))| format!("{kind} {taken}/{refused}"));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        println!(
            "seed {seed}: {} steps in {:?}, {} events, {} known differences; taken/refused: {kinds}",
            report.steps.len(),
            begin.elapsed(),
            report.events,
            report.known,
        );
        // A run that is refused everything compares nothing.
        let void = |(taken, refused): &(usize, usize)| *taken > 20 && taken == refused;
        assert!(!report.kinds.values().any(void) && (report.events > 0 || count < 500), "the run is void");
        return;
    };
    let at = difference.at;
    eprintln!("seed {seed} differs at {difference}");
    eprintln!("paste into seeds.txt:\n{seed} {} <what it was>", at + 1);
    let fewest = shrink(reference, subject, report).await;
    eprintln!("{} steps are enough:", fewest.steps.len());
    for step in &fewest.steps {
        eprintln!("  {}", brief(step));
    }
    if let Some(difference) = &fewest.difference {
        eprintln!("they differ at {difference}");
    }
    panic!("seed {seed} differs at step {at}");
}

/// The name of a step without what it asks.
fn kind(step: &Step) -> String {
    format!("{step:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// The debug text with every long run of one character told by its length: `k{4095}`.
fn brief(thing: &impl Debug) -> String {
    let text = format!("{thing:?}");
    let mut brief = String::new();
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        // A byte is one character or an escape of two or four.
        let unit = match rest.as_bytes() {
            [b'\\', b'x', ..] => rest.get(..4).unwrap_or(rest),
            [b'\\', ..] => rest.get(..2).unwrap_or(rest),
            _ => &rest[..first.len_utf8()],
        };
        let after = rest.trim_start_matches(unit);
        let count = (rest.len() - after.len()) / unit.len();
        if count > 8 {
            brief.push_str(&format!("{unit}{{{count}}}"));
        } else {
            brief.push_str(&rest[..rest.len() - after.len()]);
        }
        rest = after;
    }
    brief
}

fn number_in(variable: &str, default: u64) -> u64 {
    match env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, expected a number")),
        Err(_) => default,
    }
}

/// The seed and the number of steps of every line of `seeds.txt`.
fn remembered_seeds() -> Vec<(u64, usize)> {
    let lines = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            match (number(), number()) {
                (Some(seed), Some(steps)) => (seed, steps as usize),
                _ => panic!("seeds.txt: expected a seed and a number of steps, found `{line}`"),
            }
        })
        .collect()
}

#[tokio::test]
async fn random_requests_are_answered_as_etcd_answers_them() {
    let (reference, subject) = match (Program::reference(), Program::target()) {
        (Ok(reference), Ok(subject)) => (reference, subject),
        (Err(why), _) | (_, Err(why)) => return skip(&why),
    };
    for (seed, count) in remembered_seeds() {
        compare_seed(&reference, &subject, seed, count).await;
    }
    let count = number_in("E2D_DIFF_STEPS", 2000) as usize;
    let first = number_in("E2D_DIFF_FIRST_SEED", 1);
    for seed in first..first + number_in("E2D_DIFF_SEEDS", 2) {
        compare_seed(&reference, &subject, seed, count).await;
    }
}

/// The comparison is only worth something if it notices what is known to differ: etcd 3.4 is the known stranger.
#[tokio::test]
async fn the_comparison_notices_how_etcd_3_4_differs() {
    let (reference, stranger) = match (Program::reference(), Program::named_by("E2D_REFERENCE_ETCD_34")) {
        (Ok(reference), Ok(stranger)) => (reference, stranger),
        (Err(why), _) | (_, Err(why)) => return skip(&why),
    };
    let create = |create: WatchCreateRequest| Step::Watch { stream: 0, create };
    let known: [(&str, Vec<Step>); 4] = [
        (
            "a bad sort target ends the process",
            vec![
                Step::Put(put("a", "1")),
                Step::Put(put("b", "2")),
                Step::Range(RangeRequest { sort_target: 9, ..all_keys() }),
            ],
        ),
        (
            "a negative start revision means now",
            vec![
                create(WatchCreateRequest { start_revision: -1, ..watch("a") }),
                Step::Put(put("a", "")),
                Step::Settle,
            ],
        ),
        ("progress is answered without watches", vec![Step::ProgressAlone { stream: 0 }]),
        (
            "an alarm of no kind ends the process",
            vec![Step::Alarm(AlarmRequest { action: AlarmAction::Activate.into(), member_id: 0, alarm: 0 })],
        ),
    ];
    for (what, steps) in known {
        let twins = run(&reference, &reference, Source::Recording(&steps)).await;
        assert!(twins.difference.is_none(), "{what}: {:?}", twins.difference);
        let report = run(&reference, &stranger, Source::Recording(&steps)).await;
        let difference = report.difference.unwrap_or_else(|| panic!("not noticed: {what}"));
        println!("{what}: {:?} and {:?}", difference.reference, difference.subject);
    }
    // Random requests find it as well, without being told where to look.
    let generator = Box::new(Generator::new(1));
    let report = run(&reference, &stranger, Source::Seed { generator, count: 5000 }).await;
    let difference = report.difference.expect("5000 random requests find a difference to etcd 3.4");
    println!("seed 1: {difference}");
}

#[test]
fn long_runs_are_told_by_their_length() {
    let bytes = [&[b'k'; 4095][..], &[0xff; 20], b"ab\0\0"].concat();
    assert_eq!(brief(&b(bytes)), r#"b"k{4095}\xff{20}ab\0\0""#);
}

#[test]
fn a_seed_always_gives_the_same_requests() {
    let steps = |seed| {
        let mut generator = Generator::new(seed);
        (0..500).map(|_| format!("{:?}", generator.next())).collect::<Vec<_>>()
    };
    assert_eq!(steps(7), steps(7));
    assert_ne!(steps(7), steps(8));
}

#[test]
fn known_differences_are_found_at_any_depth_and_excuse_nothing_else() {
    let quirk = RangeRequest { limit: 1, sort_target: 1, ..key("a") };
    let plain = RangeRequest { sort_target: 0, ..quirk.clone() };
    let condition = compare("a", CompareResult::Equal, TargetUnion::Version(0));
    let nested = |range| Step::Txn(txn_if([condition.clone()], [], [txn_op(txn([range_op(range)]))]));
    let found = |count| Answer::Range(RangeResponse { count, ..Default::default() });
    let done = || Answer::Txn(TxnResponse::default());
    assert!(known_difference(&Step::Range(quirk.clone()), &found(1), &found(1)).is_some());
    assert!(known_difference(&nested(quirk.clone()), &done(), &done()).is_some());
    assert!(known_difference(&Step::Range(plain.clone()), &found(1), &found(1)).is_none());
    assert!(known_difference(&nested(plain), &done(), &done()).is_none());
    assert!(known_difference(&Step::Range(quirk.clone()), &found(1), &found(2)).is_none());
    assert!(known_difference(&Step::Range(quirk), &found(1), &Answer::Silent).is_none());
}
