//! `slashn stdio`: the files of this machine on standard input and output, for the user whose ssh started it.
//!
//! `ssh!HOST` in a namespace runs this there. It needs no home and leaves nothing: whoever could log in may do here
//! what the user may.

use std::process::ExitCode;
use std::sync::Arc;

use fileserver::{Export, Exports};
use p9::server::{self, Limits};
use p9::{Who, synth, transport};

use crate::commands::runtime_of;
use crate::error::{At, Result};
use crate::{Context, stat};

/// Serves until standard input ends.
pub fn run(context: &Context) -> Result<ExitCode> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).at("stdio", "random numbers")?;
    let mut exports = vec![Export { name: "root".into(), path: "/".into(), read_only: false }];
    exports.extend(context.user_home().map(|path| Export { name: "home".into(), path, read_only: false }));
    let exports = Exports::open(exports, key).at("export", "/")?;
    let tree = synth::tree(synth::dir([("fs", exports.node_for(&Who::owner())), ("stat", stat::dir())]));
    let runtime = runtime_of(2)?;
    let served = runtime.block_on(async {
        let io = transport::pair(tokio::io::stdin(), tokio::io::stdout());
        server::serve(io, tree, Arc::new(Who::owner()), Limits::default()).await
    });
    // A read of standard input may be under way that nothing can end.
    runtime.shutdown_background();
    served.at("stdio", "standard input").map(|()| ExitCode::SUCCESS)
}
