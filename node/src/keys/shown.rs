//! The key that a node shows to whoever connects, before anything is trusted.
//!
//! Called by `slashn add` alone. The handshake is broken off as soon as the key is seen: nothing of ours is sent but
//! the greeting, and nothing of theirs is believed but "this is the key to ask about".

use std::sync::Arc;

use p9::dial::HostPort;
use p9::transport::{self, tls};
use parking_lot::Mutex;

use super::{Key, SecretKey};
use crate::error::{At, Error, Result};

const STEP: &str = "see the node's key";

/// The key that the node at `address` shows. `me` is named in the configuration and signs nothing. Bounded by the
/// time-outs of connecting (5 s) and of a handshake (10 s).
pub fn by(address: &HostPort, me: &SecretKey) -> Result<Key> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at(STEP, address)?;
    runtime.block_on(shown(address, me))
}

async fn shown(address: &HostPort, me: &SecretKey) -> Result<Key> {
    let seen = Arc::new(Mutex::new(None));
    let look = seen.clone();
    let unwelcome = Arc::new(move |spki: &[u8]| {
        *look.lock() = Some(spki.to_vec());
        false
    });
    let config = tls::client_config(&me.identity(), unwelcome).at(STEP, address)?;
    let stream = transport::tcp(address).await.at(STEP, address)?;
    let end = tls::connect(stream, config).await;
    let spki = seen.lock().take();
    match (spki, end) {
        (Some(spki), _) => Key::from_spki(&spki).at(STEP, address),
        (None, Err(error)) => Err(Error::new(STEP, address, format_args!("no node answers there: {error}"))),
        (None, Ok(_)) => Err(Error::new(STEP, address, "it showed none")),
    }
}
