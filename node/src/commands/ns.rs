//! `slashn ns`: a mount's namespace, as the text that rebuilds it.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::Ns;
use crate::commands::{mount, runtime};
use crate::error::{At, Error, Result};
use crate::{Context, control, output};

/// Runs the command.
pub fn run(context: &Context, typed: &Ns) -> Result<ExitCode> {
    let home = context.open_home()?;
    let of = typed.of.as_deref().map(Path::new);
    if let Some(of) = of
        && of.to_str().is_some_and(|text| text.parse::<u32>().is_ok())
        && !of.exists()
    {
        let reason = "namespaces of processes are not told apart yet; those of mounts are";
        return Err(Error::new("ns", format_args!("process {}", of.display()), reason).remedy("slashn ns DIR"));
    }
    let at = mount::default_place(context, of)?;
    let socket = mount::socket(&home, &at)?;
    let text = runtime()?.block_on(async {
        let Some(root) = control::connect(&socket).await? else {
            let error = Error::new("ns", at.display(), "no grid of mine is mounted there");
            return Err(error.remedy(format!("slashn mount {}", at.display())));
        };
        control::read(&root, "ns").await.at("ns", at.display())
    })?;
    output::line(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
