//! A tree served on a loopback port, for clients that are programs of their own.
//!
//! Made by a test in its runtime; connections end when it is dropped. Whoever connects is the owner.

use std::net::SocketAddr;
use std::sync::Arc;

use p9::server::{self, Limits};
use p9::{TreeRef, Who};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A tree that is served on a port of loopback.
pub struct Listening {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Listening {
    /// Serves `tree` on a port that is free.
    pub async fn start(tree: TreeRef) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback");
        let address = listener.local_addr().expect("its address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                p9::transport::tune(&stream).expect("socket options");
                let tree = tree.clone();
                connections.spawn(async move {
                    if let Err(err) = server::serve(stream, tree, Arc::new(Who::owner()), Limits::default()).await {
                        eprintln!("a connection ended: {err}");
                    }
                });
            }
        });
        Self { address, _tasks: tasks }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
