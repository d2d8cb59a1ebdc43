//! Talk among members: per peer, by the peer's id in hexadecimal as etcd has it.

use e2d_core::ids::MemberId;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Make, powers};

/// The figures of all peers. A peer's own are got with [`Network::peer`].
#[derive(Debug)]
pub struct Network {
    active: IntGaugeVec,
    disconnected: IntCounterVec,
    known: IntGaugeVec,
    sent_bytes: IntCounterVec,
    received_bytes: IntCounterVec,
    send_failures: IntCounterVec,
    receive_failures: IntCounterVec,
    round_trip_seconds: HistogramVec,
    snapshot_send: Transfer,
    snapshot_receive: Transfer,
}

/// Snapshots in one direction.
#[derive(Debug)]
struct Transfer {
    success: IntCounterVec,
    failures: IntCounterVec,
    inflight: IntGaugeVec,
    seconds: HistogramVec,
}

/// The figures of one peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// 1 while a connection to it is up.
    pub active: IntGauge,
    /// How often the connection broke.
    pub disconnected: IntCounter,
    /// Bytes sent to it.
    pub sent_bytes: IntCounter,
    /// Bytes received from it.
    pub received_bytes: IntCounter,
    /// Messages that could not be sent.
    pub send_failures: IntCounter,
    /// Messages that could not be read.
    pub receive_failures: IntCounter,
    /// How long it took to answer, in seconds.
    pub round_trip_seconds: Histogram,
    /// Snapshots sent to it.
    pub snapshot_send: PeerTransfer,
    /// Snapshots received from it.
    pub snapshot_receive: PeerTransfer,
}

/// Snapshots to or from one peer.
#[derive(Debug, Clone)]
pub struct PeerTransfer {
    /// That arrived.
    pub success: IntCounter,
    /// That did not.
    pub failures: IntCounter,
    /// Under way.
    pub inflight: IntGauge,
    /// How long one took, in seconds.
    pub seconds: Histogram,
}

impl Network {
    pub(super) fn new(make: &Make<'_>) -> Network {
        Network {
            active: make.gauges("etcd_network_active_peers", "1 while the peer is connected.", &["Local", "Remote"]),
            disconnected: make.counters(
                "etcd_network_disconnected_peers_total",
                "Connections to the peer that broke.",
                &["Local", "Remote"],
            ),
            known: make.gauges("etcd_network_known_peers", "1 for each member known.", &["Local", "Remote"]),
            sent_bytes: make.counters("etcd_network_peer_sent_bytes_total", "Bytes sent to the peer.", &["To"]),
            received_bytes: make.counters(
                "etcd_network_peer_received_bytes_total",
                "Bytes received from the peer.",
                &["From"],
            ),
            send_failures: make.counters(
                "etcd_network_peer_sent_failures_total",
                "Messages to the peer that could not be sent.",
                &["To"],
            ),
            receive_failures: make.counters(
                "etcd_network_peer_received_failures_total",
                "Messages from the peer that could not be read.",
                &["From"],
            ),
            round_trip_seconds: make.histograms(
                "etcd_network_peer_round_trip_time_seconds",
                "Seconds until the peer answered.",
                powers(0.0001, 16),
                &["To"],
            ),
            snapshot_send: Transfer::new(make, "send", "To"),
            snapshot_receive: Transfer::new(make, "receive", "From"),
        }
    }

    /// Says that the cluster has this member; `local` itself counts too.
    pub fn know(&self, local: MemberId, remote: MemberId) {
        self.known.with_label_values(&[&hex(local), &hex(remote)]).set(1);
    }

    /// The figures of a peer, resolved once for as long as it is one.
    pub fn peer(&self, local: MemberId, remote: MemberId) -> Peer {
        let (local, remote) = (hex(local), hex(remote));
        Peer {
            active: self.active.with_label_values(&[&local, &remote]),
            disconnected: self.disconnected.with_label_values(&[&local, &remote]),
            sent_bytes: self.sent_bytes.with_label_values(&[&remote]),
            received_bytes: self.received_bytes.with_label_values(&[&remote]),
            send_failures: self.send_failures.with_label_values(&[&remote]),
            receive_failures: self.receive_failures.with_label_values(&[&remote]),
            round_trip_seconds: self.round_trip_seconds.with_label_values(&[&remote]),
            snapshot_send: self.snapshot_send.peer(&remote),
            snapshot_receive: self.snapshot_receive.peer(&remote),
        }
    }

    /// Takes away the figures of a member that was removed, so that machines that come and go leave no series behind.
    /// A handle that somebody still holds counts on, unseen.
    pub fn forget(&self, local: MemberId, remote: MemberId) {
        let (local, remote) = (hex(local), hex(remote));
        let pair: &[&str] = &[&local, &remote];
        let one: &[&str] = &[&remote];
        // That a series was never made is no error here.
        let _ = self.active.remove_label_values(pair);
        let _ = self.disconnected.remove_label_values(pair);
        let _ = self.known.remove_label_values(pair);
        for counters in [&self.sent_bytes, &self.received_bytes, &self.send_failures, &self.receive_failures] {
            let _ = counters.remove_label_values(one);
        }
        let _ = self.round_trip_seconds.remove_label_values(one);
        for transfer in [&self.snapshot_send, &self.snapshot_receive] {
            let _ = transfer.success.remove_label_values(one);
            let _ = transfer.failures.remove_label_values(one);
            let _ = transfer.inflight.remove_label_values(one);
            let _ = transfer.seconds.remove_label_values(one);
        }
    }
}

impl Transfer {
    fn new(make: &Make<'_>, way: &str, label: &str) -> Transfer {
        let name = |what: &str| format!("etcd_network_snapshot_{way}_{what}");
        Transfer {
            success: make.counters(&name("success"), "Snapshots that arrived.", &[label]),
            failures: make.counters(&name("failures"), "Snapshots that did not arrive.", &[label]),
            inflight: make.gauges(&name("inflights_total"), "Snapshots under way.", &[label]),
            seconds: make.histograms(
                &name("total_duration_seconds"),
                "Seconds that a snapshot took.",
                powers(0.1, 10),
                &[label],
            ),
        }
    }

    fn peer(&self, id: &str) -> PeerTransfer {
        PeerTransfer {
            success: self.success.with_label_values(&[id]),
            failures: self.failures.with_label_values(&[id]),
            inflight: self.inflight.with_label_values(&[id]),
            seconds: self.seconds.with_label_values(&[id]),
        }
    }
}

fn hex(id: MemberId) -> String {
    format!("{:x}", id.0)
}
