//! The loads: what clients ask for, and how one measurement of one load on one server goes.

pub(crate) mod fill;
pub(crate) mod keys;
pub(crate) mod unary;
mod watch;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::connection::Connection;
use crate::measure::{self, Attribution, Gate, Plan};
use crate::report::Figures;
use crate::server::Server;
use keys::{Keys, Values};

/// The keys that exist before a load starts, as Kubernetes would name them.
pub(crate) const PREFIX: &str = "/registry/pods/default/";
/// Keys of a page of a list.
pub(crate) const PAGE: usize = 500;

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// Put of an existing key.
    Put,
    /// Put of a key that does not exist.
    PutNew,
    /// Txn: if the key does not exist, put it; the create of Kubernetes.
    TxnCreate,
    /// Txn: if MOD is what was last seen then put, else range; the update of Kubernetes.
    TxnCas,
    /// Linearizable Range of one key.
    Get,
    /// Serializable Range of one key.
    GetSerializable,
    /// Range of 500 keys, beginning at a random key.
    ListRandom,
    /// Range of the first 500 keys of the prefix; the first page of a list in Kubernetes.
    ListFirst,
    /// 80 % linearizable gets, 20 % puts.
    Mixed,
    /// LeaseGrant, a put with that lease, LeaseRevoke: one operation.
    Lease,
    /// Delivery of events to watchers that have a stream each.
    Watch,
    /// Delivery of events to watchers that share one stream.
    WatchOneStream,
}

impl Load {
    /// Whether the number of clients is a number of watchers.
    pub(crate) fn watches(self) -> bool {
        matches!(self, Self::Watch | Self::WatchOneStream)
    }

    /// Whether the floor server can answer it.
    pub(crate) fn has_floor(self) -> bool {
        matches!(self, Self::Put | Self::Get)
    }

    /// The name on the command line and in the tables.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(|| format!("{self:?}"), |value| value.get_name().to_owned())
    }
}

/// What a measurement needs to know besides the server.
#[derive(Debug, Clone)]
pub(crate) struct Cell<'a> {
    pub(crate) load: Load,
    /// Clients that each wait for an answer before the next operation, or watchers.
    pub(crate) clients: usize,
    pub(crate) connections: usize,
    /// Tasks that put what the watchers see.
    pub(crate) writers: usize,
    /// Different in all measurements of one store, so that new keys are new.
    pub(crate) number: usize,
    pub(crate) keys: &'a Keys,
    pub(crate) values: &'a Values,
}

/// Measures one load once.
///
/// # Errors
/// Any operation that fails, or is answered wrongly, fails the measurement; the error names it.
pub(crate) async fn run(cell: &Cell<'_>, server: &mut Server, plan: &Plan) -> Result<Figures> {
    let measured = if cell.load.watches() {
        watch::run(cell, server, plan).await
    } else {
        unary(cell, server, plan).await
    };
    measured
        .with_context(|| format!("load {} with {} clients", cell.load.name(), cell.clients))
        .map_err(|error| server.blame(error))
}

async fn unary(cell: &Cell<'_>, server: &Server, plan: &Plan) -> Result<Figures> {
    let connections = Connection::open_many(server.address(), cell.connections).await?;
    let clients = unary::clients(cell, &connections).await?;
    let gate = Gate::new(plan.bound);
    let mut running = measure::clients(&gate, 1, Attribution::Completion, clients);
    let observed = running
        .beside(measure::observe(server.process(), &gate, plan))
        .await?;
    let latencies = measure::merge(running.join().await?)?;
    if cell.load == Load::Lease {
        unary::no_lease_left(&connections[0]).await?;
    }
    Figures::new(&latencies[0], &observed)
}
