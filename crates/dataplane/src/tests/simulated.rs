//! A kernel that takes batches as nf_tables does, and packets through it with the worst of luck.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portolan_plan::model::{Backend, Family, Frontend};

use crate::element::{Element, Place};
use crate::mirror::Contents;
use crate::unit::{Interval, NodeSet, Op};
use crate::word::{CLASS, KIND, Outcome, SetId, Word};

type Key = (Family, Place, Vec<u8>);

/// What a kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    elements: BTreeMap<Key, Element>,
    node: BTreeMap<(Family, NodeSet), Vec<Interval>>,
    kinds: Vec<Duration>,
    ranges: BTreeSet<(Family, Place)>,
}

fn key(element: &Element) -> Key {
    (element.family(), element.place(), element.key().as_bytes().to_vec())
}

impl Kernel {
    /// Takes a batch whole, or says what the kernel wouldn't have taken.
    pub fn commit(&mut self, ops: &[Op]) -> Result<(), String> {
        let mut next = self.clone();
        for op in ops {
            match op {
                Op::Node(family, set, intervals) => {
                    next.node.insert((*family, *set), intervals.clone());
                }
                Op::Kinds(kinds) => next.kinds.clone_from(kinds),
                Op::Ranges { family, new, all } => {
                    next.ranges.insert((*family, *new));
                    let known: Vec<Place> =
                        next.ranges.iter().filter(|(f, _)| f == family).map(|(_, p)| *p).collect();
                    if known != *all {
                        return Err(format!("rules for {all:?}, sets for {known:?}"));
                    }
                }
                Op::Delete(_) | Op::Add(_) => {}
            }
        }
        // The encoder writes deletions first.
        for op in ops {
            if let Op::Delete(element) = op {
                match next.elements.remove(&key(element)) {
                    None => return Err(format!("no such element: {element:?}")),
                    Some(there) if there != *element => {
                        return Err(format!("{element:?} was to be deleted, {there:?} is there"));
                    }
                    Some(_) => {}
                }
            }
        }
        for op in ops {
            if let Op::Add(element) = op {
                let place = element.place();
                let ranges = matches!(place, Place::Ranges(_) | Place::RangesNodePorts(_));
                if ranges && !next.ranges.contains(&(element.family(), place)) {
                    return Err(format!("no such set: {place:?}"));
                }
                if let Some(there) = next.elements.insert(key(element), element.clone()) {
                    return Err(format!("{element:?} where {there:?} is"));
                }
            }
        }
        *self = next;
        Ok(())
    }

    /// Deletes the element of this number, as nobody should.
    pub fn damage(&mut self, number: usize) {
        if let Some(key) = self.elements.keys().nth(number % self.elements.len().max(1)).cloned() {
            self.elements.remove(&key);
        }
    }

    /// Adds an element that leads nowhere, as nobody should.
    pub fn litter(&mut self, element: Element) {
        self.elements.insert(key(&element), element);
    }

    /// What reading it gives.
    pub fn contents(&self) -> Contents {
        // Keys and data go through bytes, as from the kernel.
        let through = |element: &Element| {
            let comment = match element {
                Element::Frontend { owner, .. } => owner.as_ref().map(ToString::to_string),
                _ => None,
            };
            let data = element.data();
            let read = Element::read(
                element.family(),
                element.place(),
                element.key().as_bytes(),
                data.as_ref().map(|d| d.as_bytes()),
                comment.as_deref(),
            );
            assert_eq!(read.as_ref(), Some(element), "an element reads back");
            element.clone()
        };
        Contents {
            elements: self.elements.values().map(through).collect(),
            node: self.node.clone(),
            kinds: self.kinds.clone(),
            ranges: self.ranges.clone(),
        }
    }

    fn word(&self, frontend: Frontend, inside: bool) -> Option<Word> {
        let probe = Element::Frontend { frontend, inside, word: Word(0), owner: None };
        match self.elements.get(&key(&probe))? {
            Element::Frontend { word, .. } => Some(*word),
            _ => None,
        }
    }

    fn at(&self, family: Family, place: Place, key: [u32; 2]) -> Option<&Element> {
        let bytes: Vec<u8> = match place {
            Place::Endpoints => key[0].to_ne_bytes().to_vec(),
            _ => key.iter().flat_map(|word| word.to_ne_bytes()).collect(),
        };
        self.elements.get(&(family, place, bytes))
    }
}

/// Where a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At a backend.
    At(Backend),
    /// Dropped as the frontend says.
    Drop,
    /// Refused as the frontend says.
    Reject,
    /// No frontend, or none of its backends was found.
    Nothing,
}

/// One packet that begins a connection: it makes its first lookups in one generation and the rest in the next.
pub struct Packet<'a> {
    before: &'a Kernel,
    after: &'a Kernel,
    /// How many lookups are made before the commit.
    left: usize,
    frontend: Frontend,
    inside: bool,
}

impl<'a> Packet<'a> {
    /// A packet that makes so many lookups before the commit.
    pub fn new(before: &'a Kernel, after: &'a Kernel, left: usize, frontend: Frontend, inside: bool) -> Self {
        Packet { before, after, left, frontend, inside }
    }

    /// The generation that the next lookup sees.
    fn look(&mut self) -> &'a Kernel {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                self.before
            }
            None => self.after,
        }
    }

    fn resolve(&mut self) -> Word {
        let mut word = self.look().word(self.frontend, false).unwrap_or(Word(0));
        if self.inside {
            word = self.look().word(self.frontend, true).unwrap_or(word);
        }
        word
    }

    /// The chains of `ruleset.rs`, as a program; whenever a draw can miss, it misses.
    pub fn end(mut self) -> End {
        let mut word = self.resolve();
        if word.0 & CLASS == 0 {
            return End::Nothing;
        }
        if !self.allowed(word) {
            word = self.resolve();
            if !self.allowed(word) {
                return End::Drop;
            }
        }
        if let Some(backend) = self.spread(word) {
            return End::At(backend);
        }
        let word = self.resolve();
        match word.outcome() {
            Outcome::Nothing => End::Nothing,
            Outcome::Drop => End::Drop,
            Outcome::Reject => End::Reject,
            Outcome::Spread { .. } => self.spread(word).map_or(End::Nothing, End::At),
        }
    }

    /// Whether the source may connect.
    fn allowed(&mut self, word: Word) -> bool {
        if !word.is_ranged() {
            return true;
        }
        let (frontend, source) = (self.frontend, source(self.frontend.family()));
        let kernel = self.look();
        kernel.elements.values().any(|element| match element {
            Element::Range { net, frontend: of } => *of == frontend && net.contains(&source),
            _ => false,
        })
    }

    /// Eight draws and one from the lower half.
    fn spread(&mut self, mut word: Word) -> Option<Backend> {
        let sticky = word.0 & KIND != 0;
        for half in [0, 0, 0, 0, 0, 0, 0, 0, 1] {
            let Outcome::Spread { set, exponent } = word.outcome() else { continue };
            let Some(exponent) = exponent.checked_sub(half) else { continue };
            if sticky != (set.kind() != 0) {
                // The maps of the other kind have nothing under this word.
                continue;
            }
            let Some(found) = self.draw(set, exponent) else { continue };
            match found {
                Element::Slot { backend, .. } => return Some(*backend),
                Element::Token { token, .. } => {
                    let family = self.frontend.family();
                    match self.look().at(family, Place::Endpoints, [token.0, 0]) {
                        Some(Element::Endpoint { backend, .. }) => return Some(*backend),
                        _ => word = self.resolve(),
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// One draw.
    fn draw(&mut self, set: SetId, exponent: u32) -> Option<&'a Element> {
        let family = self.frontend.family();
        let kernel = self.look();
        let place = if set.kind() == 0 { Place::Slots } else { Place::Tokens };
        let mut found = None;
        for slot in 0..1 << exponent {
            found = Some(kernel.at(family, place, [set.0, slot])?);
        }
        found
    }
}

/// Where packets come from.
pub fn source(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 0, 2, 1]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    }
}
