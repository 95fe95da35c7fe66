//! `-a REQUIREMENTS`: what is asked of a node, and what the files below its /stat say to that.
//!
//! Parsed by the command line, asked of each node by [`super::places`]. What a node tells is anyone's text: one that
//! cannot be read is no node for anybody.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till1, take_while1};
use nom::character::complete::multispace0;
use nom::combinator::{all_consuming, value};
use nom::multi::separated_list0;
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};
use p9::{Errno, NodeRef};

use crate::control;

/// What a node must be: all of it. Nothing is met by every node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Requirements(Vec<Requirement>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Requirement {
    what: What,
    relation: Relation,
    wanted: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Arch,
    Cores,
    Load,
    Memory,
    Name,
    Runs,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Relation {
    Is,
    IsNot,
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// What a node is and how busy it is.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) arch: String,
    /// The architectures whose programs it runs, its own first.
    runs: Vec<String>,
    pub(super) cores: f64,
    /// Of the last minute.
    load: f64,
    /// Tasks that run or want to, at this moment.
    running: f64,
    /// What is available, in bytes.
    memory: f64,
}

impl Facts {
    /// As the node whose root is `root` tells it. Errors: it does not, or what it tells means nothing (`EPROTO`).
    pub(super) async fn of(root: &NodeRef) -> Result<Self, Errno> {
        let words = async |file: &str| -> Result<Vec<String>, Errno> {
            let text = control::read(root, &format!("stat/{file}")).await?;
            Ok(String::from_utf8_lossy(&text).split_whitespace().map(str::to_owned).collect())
        };
        let needed = async { tokio::try_join!(words("arch"), words("cores"), words("load"), words("memory")) };
        // An older node does not tell these.
        let (needed, runs, running) = tokio::join!(needed, words("runs"), words("running"));
        let (arch, cores, load, memory) = needed?;
        let number = |words: &[String], at: usize| -> Result<f64, Errno> {
            let number = words.get(at).and_then(|word| word.parse().ok());
            number.filter(|number: &f64| number.is_finite() && *number >= 0.0).ok_or(Errno::EPROTO)
        };
        Ok(Self {
            running: number(&running.unwrap_or_default(), 0).unwrap_or_default(),
            runs: runs.unwrap_or_else(|_| arch.clone()),
            arch: arch.into_iter().next().ok_or(Errno::EPROTO)?,
            cores: number(&cores, 0)?.max(1.0),
            load: number(&load, 0)?,
            memory: number(&memory, 1)?,
        })
    }

    /// Whether it runs programs for `architecture`, by itself or by an emulator.
    pub(super) fn runs(&self, architecture: &str) -> bool {
        self.runs.iter().any(|one| one == architecture)
    }

    /// Whether it does so by itself.
    pub(super) fn runs_natively(&self, architecture: &str) -> bool {
        let plain = architecture.split_once("-v").map_or(architecture, |(plain, _)| plain);
        self.arch == plain && self.runs(architecture)
    }

    /// Its own architecture, at the highest level that it tells of.
    pub(super) fn own(&self) -> &str {
        let level = |one: &&String| one.strip_prefix(&self.arch).is_some_and(|level| level.starts_with("-v"));
        self.runs.iter().filter(level).max().unwrap_or(&self.arch)
    }

    /// How busy it is with `more` commands than it tells of: the load of each core. What has begun within the minute
    /// counts, too, or what is started in a burst would all go to one.
    pub(super) fn business(&self, more: usize) -> f64 {
        (self.load.max(self.running) + more as f64) / self.cores
    }

    /// The order in which nodes are taken: the least busy first, and of such the one with more cores, more memory.
    pub(super) fn before(&self, other: &Self) -> Ordering {
        let least = self.business(0).total_cmp(&other.business(0));
        least.then(other.cores.total_cmp(&self.cores)).then(other.memory.total_cmp(&self.memory))
    }
}

impl Requirements {
    /// Whether the node called `name`, of which `facts` are told, meets them.
    pub(super) fn met_by(&self, name: &str, facts: &Facts) -> bool {
        self.0.iter().all(|requirement| requirement.met_by(name, facts))
    }
}

impl Requirement {
    fn met_by(&self, name: &str, facts: &Facts) -> bool {
        if self.what == What::Runs {
            return facts.runs(usual(&self.wanted)) == (self.relation == Relation::Is);
        }
        let compared = match self.what {
            What::Runs => None,
            What::Arch => usual(&facts.arch).partial_cmp(usual(&self.wanted)),
            What::Name => name.partial_cmp(self.wanted.as_str()),
            What::Cores => self.amount().and_then(|wanted| facts.cores.partial_cmp(&wanted)),
            What::Load => self.amount().and_then(|wanted| facts.load.partial_cmp(&wanted)),
            What::Memory => self.amount().and_then(|wanted| facts.memory.partial_cmp(&wanted)),
        };
        compared.is_some_and(|compared| match self.relation {
            Relation::Is => compared.is_eq(),
            Relation::IsNot => compared.is_ne(),
            Relation::Below => compared.is_lt(),
            Relation::AtMost => compared.is_le(),
            Relation::Above => compared.is_gt(),
            Relation::AtLeast => compared.is_ge(),
        })
    }

    fn amount(&self) -> Option<f64> {
        amount(&self.wanted)
    }

    fn check(&self) -> Result<(), String> {
        let wanted = &self.wanted;
        match self.what {
            What::Arch | What::Name | What::Runs if matches!(self.relation, Relation::Is | Relation::IsNot) => Ok(()),
            What::Arch | What::Name | What::Runs => Err("an architecture or a name is compared by = or !=".into()),
            _ if self.amount().is_some() => Ok(()),
            _ => Err(format!("`{wanted}` is no number (1.5, 4, 512M, 64G)")),
        }
    }
}

/// The kernel's name for an architecture that Debian and others call otherwise.
fn usual(arch: &str) -> &str {
    match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

/// A number, with K, M, G or T for powers of 1024.
pub(super) fn amount(text: &str) -> Option<f64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: f64 = digits.parse().ok()?;
    (number.is_finite() && number >= 0.0).then(|| number * f64::from(unit).exp2())
}

impl FromStr for Requirements {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const USAGE: &str = "it is words like arch=x86_64, cores>=4, load<0.5, mem>=2G, name!=pi";
        let parsed: IResult<&str, _> = all_consuming(all).parse(text);
        let (_, list) = parsed.map_err(|_| USAGE.to_owned())?;
        list.iter().try_for_each(Requirement::check)?;
        Ok(Self(list))
    }
}

impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |what| WORDS.iter().find(|(_, known)| *known == what).map_or("", |(name, _)| *name);
        let signs = |relation| SIGNS.iter().find(|(_, known)| *known == relation).map_or("", |(sign, _)| *sign);
        let words = self.0.iter().map(|one| format!("{}{}{}", names(one.what), signs(one.relation), one.wanted));
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

const WORDS: [(&str, What); 6] = [
    ("arch", What::Arch),
    ("cores", What::Cores),
    ("load", What::Load),
    ("mem", What::Memory),
    ("name", What::Name),
    ("runs", What::Runs),
];
const SIGNS: [(&str, Relation); 6] = [
    ("!=", Relation::IsNot),
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("=", Relation::Is),
    ("<", Relation::Below),
    (">", Relation::Above),
];

fn all(input: &str) -> IResult<&str, Vec<Requirement>> {
    let between = take_while1(|c: char| c.is_whitespace() || c == ',');
    delimited(multispace0, separated_list0(between, one), multispace0).parse(input)
}

fn one(input: &str) -> IResult<&str, Requirement> {
    let (input, word) = take_while1(|c: char| c.is_ascii_alphabetic())(input)?;
    let known = WORDS.iter().find(|(name, _)| *name == word);
    let what = known.ok_or(nom::Err::Error(nom::error::Error::new(input, nom::error::ErrorKind::Tag)))?.1;
    let sign = |index: usize| value(SIGNS[index].1, tag(SIGNS[index].0));
    let relation = alt((sign(0), sign(1), sign(2), sign(3), sign(4), sign(5)));
    let wanted = take_till1(|c: char| c.is_whitespace() || c == ',');
    let (input, (relation, wanted)) = (preceded(multispace0, relation), preceded(multispace0, wanted)).parse(input)?;
    Ok((input, Requirement { what, relation, wanted: wanted.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(load: f64, cores: f64) -> Facts {
        Facts {
            arch: "aarch64".into(),
            runs: vec!["aarch64".into(), "x86_64".into()],
            cores,
            load,
            running: 0.0,
            memory: 2.5 * 1024.0 * 1024.0 * 1024.0,
        }
    }

    #[test]
    fn every_relation_is_told_from_every_other() {
        let met = |text: &str| text.parse::<Requirements>().unwrap().met_by("pi", &facts(0.5, 4.0));
        for yes in [
            "",
            "  ",
            "arch=aarch64",
            "arch=arm64",
            "arch!=x86_64",
            "cores>=4",
            "cores=4",
            "cores<=4",
            "cores<5 cores>3",
            "load<0.6",
            "mem>=2.5G",
            "mem>2500M, mem<1T",
            "name=pi",
            "runs=arm64 runs=amd64 runs!=riscv64",
            "name != alpha",
            "mem >= 1G cores >= 2",
        ] {
            assert!(met(yes), "{yes}");
        }
        for no in [
            "arch=x86_64",
            "cores>4",
            "cores<4",
            "load>=1",
            "mem>=4G",
            "name!=pi",
            "cores=4 load>9",
            "runs=riscv64",
            "runs!=x86_64",
        ] {
            assert!(!met(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_requirement_is_refused_and_what_is_prints_as_it_was_said() {
        for wrong in ["gpus>1", "arch", "arch=", "cores>=four", "load<-1", "arch>=x", "cores", "mem=1G;", "x y"] {
            assert!(wrong.parse::<Requirements>().is_err(), "{wrong}");
        }
        let said = "arch=aarch64 cores>=2 mem<1G";
        assert_eq!(said.parse::<Requirements>().unwrap().to_string(), said);
    }

    #[test]
    fn the_least_busy_node_is_first() {
        let mut nodes = [facts(2.0, 2.0), facts(1.0, 8.0), facts(0.0, 1.0), facts(0.0, 2.0)];
        nodes.sort_by(Facts::before);
        assert_eq!(nodes.map(|node| (node.load, node.cores)), [(0.0, 2.0), (0.0, 1.0), (1.0, 8.0), (2.0, 2.0)]);
        assert!(Facts { running: 3.0, ..facts(0.0, 2.0) }.business(0) > facts(2.0, 2.0).business(0));
        assert!(facts(0.0, 2.0).business(1) > facts(1.0, 8.0).business(2));
    }
}
