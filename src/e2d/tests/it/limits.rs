//! How large a request may be, what is said to one that is larger, and to one that nobody knows.

use tonic::Code;

use crate::client::*;
use crate::server::Server;

const TOO_LARGE: &str = "etcdserver: request is too large";

#[tokio::test]
async fn a_request_may_be_as_large_as_the_limit() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    // The limit is 1.5 MiB for the request as it is logged, a few dozen bytes more than the value.
    client.put_ok("a", vec![b'v'; (1536 << 10) - 100]).await;
    refused(
        client.put(put("a", vec![b'v'; (1536 << 10) + 1])).await,
        Code::InvalidArgument,
        TOO_LARGE,
    );
    let ops: Vec<_> = (0..3)
        .map(|number| put_op(put(format!("{number}"), vec![b'v'; 600 << 10])))
        .collect();
    refused(client.txn(txn(ops)).await, Code::InvalidArgument, TOO_LARGE);
    assert_eq!(client.revision().await, 2);
}

#[tokio::test]
async fn max_request_bytes_is_a_flag() {
    let Some(server) = Server::target(&["--max-request-bytes=10000"]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", [b'v'; 9900]).await;
    refused(
        client.put(put("a", [b'v'; 10001])).await,
        Code::InvalidArgument,
        TOO_LARGE,
    );
}

#[tokio::test]
async fn a_message_beyond_the_limit_of_the_transport_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let status = client
        .put(put("a", vec![b'v'; 3 << 20]))
        .await
        .expect_err("too large");
    let text = "grpc: received message larger than max (3145736 vs. 2097152)";
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, text)
    );
    assert_eq!(client.put_ok("a", "").await, 2, "the connection goes on");
}

#[tokio::test]
async fn a_read_may_be_asked_with_a_large_key() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let name = vec![b'k'; 1 << 20];
    client.put_ok(&name, "v").await;
    assert_eq!(client.get(&name).await.expect("the key exists").key, name);
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    // Clients try newer methods and fall back on this code.
    for path in [
        "/etcdserverpb.KV/NoSuchMethod",
        "/etcdserverpb.NoSuchService/Method",
    ] {
        assert_eq!(
            Client::call_unknown(&server.url(), path).await.code(),
            Code::Unimplemented,
            "{path}"
        );
    }
}
