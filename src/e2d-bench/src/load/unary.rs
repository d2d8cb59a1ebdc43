//! Operations of one request and one answer, and what a right answer is.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use e2d_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use e2d_api::etcdserverpb::kv_client::KvClient;
use e2d_api::etcdserverpb::lease_client::LeaseClient;
use e2d_api::etcdserverpb::request_op::Request;
use e2d_api::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use super::keys::{FreshKeys, Keys, Random, VALUE_BYTES, Values, prefix_end};
use super::{Cell, Load, PAGE};
use crate::connection::Connection;
use crate::measure::Operate;

const LEASED_PREFIX: &str = "/registry/leased/";
/// Longer than any measurement: a lease that expired by itself would hide a revoke that does nothing.
const LEASE_TTL_SECONDS: i64 = 3600;

/// One client: it waits for an answer before it asks again.
#[derive(Debug)]
pub(crate) struct Client {
    load: Load,
    number: usize,
    kv: KvClient<Connection>,
    lease: LeaseClient<Connection>,
    keys: Keys,
    values: Values,
    random: Random,
    fresh: FreshKeys,
    // Keys that only this client writes, with the revision of its last write: a compare that fails is then the
    // server's fault.
    owned: Vec<(usize, i64)>,
    leased: Bytes,
}

/// The clients of a measurement, spread over the connections.
pub(crate) async fn clients(cell: &Cell<'_>, connections: &[Connection]) -> Result<Vec<Client>> {
    let mut clients: Vec<Client> = connections
        .iter()
        .cycle()
        .take(cell.clients)
        .enumerate()
        .map(|(number, connection)| Client::new(cell, number, connection))
        .collect();
    if cell.load == Load::TxnCas {
        ensure!(
            cell.clients <= cell.keys.len(),
            "each of {} clients needs a key of its own, there are {} keys",
            cell.clients,
            cell.keys.len()
        );
        for (index, revision) in revisions(&connections[0], cell.keys).await? {
            clients[index % cell.clients].owned.push((index, revision));
        }
    }
    Ok(clients)
}

/// The mod revisions of all keys.
async fn revisions(connection: &Connection, keys: &Keys) -> Result<Vec<(usize, i64)>> {
    let mut kv = connection.kv();
    let mut revisions = Vec::with_capacity(keys.len());
    let mut from = keys.prefix();
    loop {
        let request = RangeRequest {
            key: from,
            range_end: keys.end(),
            limit: PAGE as i64,
            ..Default::default()
        };
        let page = kv
            .range(request)
            .await
            .context("listing the revisions of the keys")?
            .into_inner();
        for pair in &page.kvs {
            let index = keys
                .index(&pair.key)
                .ok_or_else(|| anyhow!("unexpected key {:?} in the list", pair.key))?;
            revisions.push((index, pair.mod_revision));
        }
        match page.kvs.last() {
            Some(last) if page.more => from = [&last.key[..], &[0]].concat().into(),
            _ => break,
        }
    }
    ensure!(
        revisions.len() == keys.len(),
        "listed {} keys, expected {}",
        revisions.len(),
        keys.len()
    );
    Ok(revisions)
}

/// Whether every lease took its key with it.
pub(crate) async fn no_lease_left(connection: &Connection) -> Result<()> {
    let request = RangeRequest {
        key: LEASED_PREFIX.into(),
        range_end: prefix_end(LEASED_PREFIX),
        count_only: true,
        ..Default::default()
    };
    let count = connection
        .kv()
        .range(request)
        .await
        .context("counting leased keys")?
        .into_inner()
        .count;
    ensure!(
        count == 0,
        "{count} keys are left of leases that were revoked"
    );
    Ok(())
}

impl Operate for Client {
    async fn operate(&mut self) -> Result<()> {
        let done = match self.load {
            Load::Put => self.put().await,
            Load::PutNew => self.put_new().await,
            Load::TxnCreate => self.create().await,
            Load::TxnCas => self.compare_and_set().await,
            Load::Get => self.get(false).await,
            Load::GetSerializable => self.get(true).await,
            Load::ListRandom => {
                let first = self.random.below(self.keys.len().saturating_sub(PAGE) + 1);
                self.list(self.keys.key(first), first).await
            }
            Load::ListFirst => self.list(self.keys.prefix(), 0).await,
            Load::Mixed if self.random.below(5) == 0 => self.put().await,
            Load::Mixed => self.get(false).await,
            Load::Lease => self.grant_attach_revoke().await,
            Load::Watch | Load::WatchOneStream => {
                bail!("a watch is not one request with one answer")
            }
        };
        done.with_context(|| format!("{} by client {}", self.load.name(), self.number))
    }
}

impl Client {
    pub(crate) fn new(cell: &Cell<'_>, number: usize, connection: &Connection) -> Self {
        Self {
            load: cell.load,
            number,
            kv: connection.kv(),
            lease: connection.lease(),
            keys: cell.keys.clone(),
            values: cell.values.clone(),
            random: Random::new((cell.number as u64) << 32 | number as u64),
            fresh: FreshKeys::new(format!("/registry/new/{:04}/{number:04}/", cell.number)),
            owned: Vec::new(),
            leased: format!("{LEASED_PREFIX}{number:08}").into(),
        }
    }

    fn any_key(&mut self) -> Bytes {
        self.keys.key(self.random.below(self.keys.len()))
    }

    fn put_request(&mut self, key: Bytes) -> PutRequest {
        PutRequest {
            key,
            value: self.values.any(&mut self.random),
            ..Default::default()
        }
    }

    async fn put(&mut self) -> Result<()> {
        let key = self.any_key();
        let request = self.put_request(key);
        let answer = self.kv.put(request).await.context("Put")?;
        ensure!(
            answer.get_ref().header.is_some(),
            "Put was answered without a header"
        );
        Ok(())
    }

    async fn put_new(&mut self) -> Result<()> {
        let key = self.fresh.take();
        let request = self.put_request(key);
        let answer = self.kv.put(request).await.context("Put of a new key")?;
        ensure!(
            answer.get_ref().header.is_some(),
            "Put was answered without a header"
        );
        Ok(())
    }

    async fn create(&mut self) -> Result<()> {
        let key = self.fresh.take();
        let put = self.put_request(key.clone());
        let txn = TxnRequest {
            compare: vec![mod_is(key, 0)],
            success: vec![then_put(put)],
            failure: vec![],
        };
        let answer = self
            .kv
            .txn(txn)
            .await
            .context("Txn that creates")?
            .into_inner();
        ensure!(answer.succeeded, "Txn found a key that was never written");
        Ok(())
    }

    async fn compare_and_set(&mut self) -> Result<()> {
        let slot = self.random.below(self.owned.len());
        let (index, revision) = self.owned[slot];
        let key = self.keys.key(index);
        let put = self.put_request(key.clone());
        let range = RangeRequest {
            key: key.clone(),
            ..Default::default()
        };
        let txn = TxnRequest {
            compare: vec![mod_is(key, revision)],
            success: vec![then_put(put)],
            failure: vec![RequestOp {
                request: Some(Request::RequestRange(range)),
            }],
        };
        let answer = self
            .kv
            .txn(txn)
            .await
            .context("Txn that compares and sets")?
            .into_inner();
        ensure!(
            answer.succeeded,
            "Txn did not find key {index} at revision {revision}, which this client wrote"
        );
        let header = answer
            .header
            .ok_or_else(|| anyhow!("Txn was answered without a header"))?;
        ensure!(
            header.revision > revision,
            "Txn wrote revision {} over revision {revision} of key {index}",
            header.revision
        );
        self.owned[slot].1 = header.revision;
        Ok(())
    }

    async fn get(&mut self, serializable: bool) -> Result<()> {
        let request = RangeRequest {
            key: self.any_key(),
            limit: 1,
            serializable,
            ..Default::default()
        };
        let key = request.key.clone();
        let answer = self
            .kv
            .range(request)
            .await
            .context("Range of one key")?
            .into_inner();
        match &answer.kvs[..] {
            [found] if found.key == key && found.value.len() == VALUE_BYTES => Ok(()),
            found => bail!(
                "Range of {key:?} answered {} keys, expected it and {VALUE_BYTES} bytes",
                found.len()
            ),
        }
    }

    async fn list(&mut self, key: Bytes, first: usize) -> Result<()> {
        let request = RangeRequest {
            key,
            range_end: self.keys.end(),
            limit: PAGE as i64,
            ..Default::default()
        };
        let answer = self
            .kv
            .range(request)
            .await
            .context("Range of a page")?
            .into_inner();
        let left = self.keys.len() - first;
        let (expected, more) = (left.min(PAGE), left > PAGE);
        ensure!(
            answer.kvs.len() == expected && answer.more == more && answer.count == left as i64,
            "Range from key {first} answered {} keys, more {}, count {}; expected {expected}, {more}, {left}",
            answer.kvs.len(),
            answer.more,
            answer.count
        );
        let (begin, end) = (self.keys.key(first), self.keys.key(first + expected - 1));
        ensure!(
            answer.kvs[0].key == begin && answer.kvs[expected - 1].key == end,
            "Range from key {first} answered {:?} to {:?}; expected {begin:?} to {end:?}",
            answer.kvs[0].key,
            answer.kvs[expected - 1].key
        );
        Ok(())
    }

    async fn grant_attach_revoke(&mut self) -> Result<()> {
        let grant = LeaseGrantRequest {
            ttl: LEASE_TTL_SECONDS,
            id: 0,
        };
        let id = self
            .lease
            .lease_grant(grant)
            .await
            .context("LeaseGrant")?
            .into_inner()
            .id;
        ensure!(id != 0, "LeaseGrant answered lease 0");
        let put = PutRequest {
            lease: id,
            ..self.put_request(self.leased.clone())
        };
        self.kv
            .put(put)
            .await
            .with_context(|| format!("Put with lease {id}"))?;
        let revoke = LeaseRevokeRequest { id };
        self.lease
            .lease_revoke(revoke)
            .await
            .with_context(|| format!("LeaseRevoke of lease {id}"))?;
        Ok(())
    }
}

fn mod_is(key: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

fn then_put(put: PutRequest) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(put)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor;

    /// A client of the floor server, which answers some loads rightly and refuses the others.
    async fn client(load: Load) -> Client {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        tokio::spawn(floor::serve(address));
        let connection = loop {
            match Connection::open(address).await {
                Ok(connection) => break connection,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let (keys, values) = (Keys::new("/t/", 1000), Values::new());
        let cell = Cell {
            load,
            clients: 1,
            connections: 1,
            writers: 1,
            number: 0,
            keys: &keys,
            values: &values,
        };
        Client::new(&cell, 7, &connection)
    }

    #[tokio::test]
    async fn right_answers_pass() {
        for load in [
            Load::Put,
            Load::PutNew,
            Load::Get,
            Load::GetSerializable,
            Load::Mixed,
        ] {
            let mut client = client(load).await;
            for _ in 0..20 {
                client.operate().await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_refused_operation_is_named_with_its_client_and_status() {
        for (load, what) in [
            (
                Load::TxnCreate,
                "txn-create by client 7: Txn that creates: ",
            ),
            (Load::ListFirst, "list-first by client 7: Range of a page: "),
            (
                Load::ListRandom,
                "list-random by client 7: Range of a page: ",
            ),
            (Load::Lease, "lease by client 7: LeaseGrant: "),
        ] {
            let error = format!("{:#}", client(load).await.operate().await.unwrap_err());
            assert!(error.starts_with(what), "{error}");
            assert!(error.contains("not implemented"), "{error}");
        }
    }
}
