//! What one event costs the server. A measurement, not a check: run with
//! `cargo test --release -p e2d cost_of -- --ignored --nocapture --test-threads 1`.

use super::*;
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().unwrap()
}

/// CPU microseconds of this process's threads whose name is one of these.
fn cpu_micros(names: &[&str]) -> u64 {
    let mut micros = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if names.contains(&name.trim()) {
            let stat = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            micros += stat.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0) / 1000;
        }
    }
    micros
}

fn measure(streams: usize, connections: usize, revisions: usize, in_flight: u64) {
    let (server, client) = (runtime("server"), runtime("client"));
    let world = server.block_on(World::new(Limits::default(), 64 << 20));
    let (reached, reaching) = tokio::sync::watch::channel(vec![1_u64; streams]);
    let reached = Arc::new(reached);
    client.block_on(async {
        for connection in 0..connections {
            let mut stub = world.client().await;
            for number in (connection..streams).step_by(connections) {
                let mut watcher = Watcher::open(&mut stub, &[]).await.unwrap();
                watcher.create(on("k", "l")).await;
                assert!(watcher.next().await.created);
                let reached = reached.clone();
                tokio::spawn(async move {
                    let _requests = watcher.requests;
                    while let Ok(Some(response)) = watcher.responses.message().await {
                        let last = response.events.last().unwrap().kv.as_ref().unwrap().mod_revision as u64;
                        reached.send_modify(|all| all[number] = last);
                    }
                });
            }
        }
    });
    let value = "v".repeat(256);
    let names = ["server", "e2d-watch"];
    let (started, before) = (Instant::now(), names.map(|name| cpu_micros(&[name])));
    let mut reaching = reaching;
    for number in 0..revisions as u64 {
        world.put("key", &value);
        let wanted = (2 + number).saturating_sub(in_flight);
        client.block_on(reaching.wait_for(|all| all.iter().all(|reached| *reached >= wanted))).unwrap();
    }
    let last = revisions as u64 + 1;
    client.block_on(reaching.wait_for(|all| all.iter().all(|reached| *reached >= last))).unwrap();
    let events = (streams * revisions) as f64;
    let after = names.map(|name| cpu_micros(&[name]));
    let [tasks, hub] = [0, 1].map(|which| (after[which] - before[which]) as f64 / events);
    println!(
        "{streams} streams on {connections} connections, {in_flight} revisions in flight: {:.2} us of server CPU for \
         each event ({tasks:.2} sending, {hub:.2} hub), {:.0} events/s",
        tasks + hub,
        events / started.elapsed().as_secs_f64(),
    );
    world.handle.stop();
}

#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_an_event() {
    for (streams, revisions, in_flight) in
        [(100, 3000, 0), (100, 10_000, 16), (1000, 300, 0), (1000, 1000, 16), (64, 10_000, 16)]
    {
        measure(streams, 8, revisions, in_flight);
    }
}
