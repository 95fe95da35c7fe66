//! A link on which nothing arrives but at steps, so that they count how often whoever uses it waits.
//!
//! What is said on any of its connections is held until nobody has said anything for a while: then all of it arrives at
//! once, which is one step. Two of them are a round trip, in which a connection is made, too. However many connections
//! there are and however much is said at the same time, only what waits for an answer costs more steps.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Longer than either side takes to go on once it has heard something.
const QUIET: Duration = Duration::from_millis(400);

/// What arrives at the next step.
enum Held {
    Bytes(mpsc::UnboundedSender<Vec<u8>>, Vec<u8>),
    /// A connection is asked for, which is made after so many steps.
    Knock(oneshot::Sender<()>, u32),
}

struct State {
    held: Vec<Held>,
    last: Instant,
}

type Shared = Arc<Mutex<State>>;

/// A TCP proxy on loopback. Dropping it ends its connections.
pub struct Stepped {
    /// Where it listens.
    pub address: SocketAddr,
    steps: Arc<AtomicU64>,
    state: Shared,
    _tasks: JoinSet<()>,
}

impl Stepped {
    /// Starts one in front of `to`.
    pub async fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, steps) = (listener.local_addr()?, Arc::<AtomicU64>::default());
        let state = Arc::new(Mutex::new(State { held: Vec::new(), last: Instant::now() }));
        let mut tasks = JoinSet::new();
        tasks.spawn(step(state.clone(), steps.clone()));
        let carried = state.clone();
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                links.spawn(carry(near, to, carried.clone()));
            }
        });
        Ok(Self { address, steps, state, _tasks: tasks })
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    /// Returns once nothing is under way, and nothing has been for a while.
    pub fn settle(&self) {
        let is_settled = || {
            let state = self.state.lock();
            state.held.is_empty() && state.last.elapsed() >= QUIET * 2
        };
        while !is_settled() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

async fn step(state: Shared, steps: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut state = state.lock();
        if state.held.is_empty() || state.last.elapsed() < QUIET {
            continue;
        }
        steps.fetch_add(1, Ordering::SeqCst);
        for held in std::mem::take(&mut state.held) {
            match held {
                Held::Bytes(to, bytes) => _ = to.send(bytes),
                Held::Knock(made, 1) => _ = made.send(()),
                Held::Knock(made, steps) => state.held.push(Held::Knock(made, steps - 1)),
            }
        }
        state.last = Instant::now();
    }
}

fn hold(state: &Shared, held: Held) {
    let mut state = state.lock();
    state.held.push(held);
    state.last = Instant::now();
}

async fn carry(near: TcpStream, to: SocketAddr, state: Shared) {
    let (made, comes) = oneshot::channel();
    hold(&state, Held::Knock(made, 2));
    if comes.await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(to).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::join!(pump(near_read, far_write, &state), pump(far_read, near_write, &state));
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, state: &Shared) {
    let (sender, mut arrives) = mpsc::unbounded_channel();
    let read = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(got @ 1..) = from.read(&mut buffer).await {
            hold(state, Held::Bytes(sender.clone(), buffer[..got].to_vec()));
        }
        drop(sender);
    };
    let write = async {
        while let Some(bytes) = arrives.recv().await {
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
