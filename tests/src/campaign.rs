//! Cases of a property, each from a seed of its own, for as long as there is time.
//!
//! Used by the tests that search: `SLASHN_FUZZ_SECONDS` says how long each of them does, and `SLASHN_SEED` has them try
//! that one case and nothing else. What fails is made smaller by proptest, and told with its seed.

use std::env;
use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

/// Tries `test` on values of `strategy` for `seconds`, but on one at least.
pub fn search<S: Strategy>(what: &str, seconds: u64, strategy: &S, test: impl Fn(S::Value) -> TestCaseResult)
where
    S::Value: Debug,
{
    let only: Option<u64> = number("SLASHN_SEED");
    let budget = Duration::from_secs(number("SLASHN_FUZZ_SECONDS").unwrap_or(seconds));
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = only.unwrap_or(since.as_nanos() as u64);
    let (start, mut tried) = (Instant::now(), 0);
    loop {
        let seed = first.wrapping_add(tried);
        let mut runner = runner(seed);
        let value = strategy.new_tree(&mut runner).expect("a value");
        let size = format!("{:?}", value.current()).len();
        if let Err(found) = runner.run_one(value, &test) {
            panic!("{what}: SLASHN_SEED={seed} has it again ({size} bytes before it was made smaller)\n{found}");
        }
        tried += 1;
        if only.is_some() || start.elapsed() >= budget {
            break;
        }
    }
    eprintln!("{what}: {tried} cases from seed {first}");
}

fn runner(seed: u64) -> TestRunner {
    let config =
        Config { failure_persistence: None, max_shrink_time: 60_000, max_shrink_iters: 20_000, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
