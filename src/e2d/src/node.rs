//! What the node says of itself to those who only look: health checks and metrics.

use crate::api::watch::WatchHandle;
use crate::api::{Api, ETCD_MINOR_VERSION, ETCD_VERSION};
use crate::http::{Node, Versions};
use crate::logging;
use crate::metrics::{Observation, Observed};
use e2d_core::alarm::Alarm;
use std::sync::PoisonError;

/// See the module.
pub struct View {
    /// The services, which know the rest.
    pub api: Api,
    /// The watchers.
    pub watch: WatchHandle,
}

impl Observed for View {
    fn observe(&self) -> Observation {
        let api = &self.api;
        let state = api.consensus.state();
        let published = api.store.published();
        let layers = api.store.layers();
        // A file that cannot be looked at now has no size now; reads of it say what is wrong.
        let (used, file) = api.store.file_bytes().unwrap_or_default();
        let watch = self.watch.counts();
        Observation {
            member_id: api.consensus.member().0,
            server_version: ETCD_VERSION.to_owned(),
            cluster_version: ETCD_MINOR_VERSION.trim_end_matches(".0").to_owned(),
            has_leader: state.leader().is_some(),
            is_leader: api.consensus.leads(),
            leader_changes: state.leader_changes(),
            proposals_committed: state.committed().0,
            proposals_applied: api.consensus.applied().0,
            proposals_pending: api.consensus.waiting() as u64,
            db_bytes: file,
            db_in_use_bytes: used,
            quota_bytes: api.quota_bytes.unwrap_or(0),
            memtable_bytes: layers.iter().map(|layer| layer.bytes() as u64).sum(),
            current_revision: published.revision.0 as i64,
            compact_revision: published.compacted.map_or(-1, |compacted| compacted.0 as i64),
            keys: api.store.keys(),
            leases: api.lessor.lock().unwrap_or_else(PoisonError::into_inner).len() as u64,
            watch_streams: watch.streams as u64,
            watchers: watch.watchers as u64,
            slow_watchers: watch.behind as u64,
            log_dropped: logging::dropped(),
            ..Observation::default()
        }
    }
}

impl Node for View {
    fn versions(&self) -> Versions {
        Versions {
            server: ETCD_VERSION.to_owned(),
            cluster: Some(ETCD_MINOR_VERSION.to_owned()),
            storage: Some(ETCD_MINOR_VERSION.to_owned()),
        }
    }

    fn alarms(&self) -> Vec<Alarm> {
        self.api.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_leader(&self) -> bool {
        self.api.consensus.state().leader().is_some()
    }

    fn is_learner(&self) -> bool {
        false
    }

    async fn linearizable_read(&self) -> Result<(), String> {
        self.api.check_read(true).await.map_err(|status| status.message().to_owned())
    }

    async fn serializable_read(&self) -> Result<(), String> {
        self.api.check_read(false).await.map_err(|status| status.message().to_owned())
    }
}
