//! The 32-bit word that carries a frontend's whole decision from rule to rule.
//!
//! ```text
//! 31..28  kind: 0 plain; 1..15 sticky, one for each affinity timeout in use
//! 27..6   plain: the set's id (22 bits)
//! 27..14  sticky: the set's id (14 bits, for each kind)
//! 13      sticky: this word is a token, that is, it names one endpoint of the set
//! 12..0   of a token: the endpoint's number
//! 5       only the sources in the range sets may connect
//! 4..0    class: 0 nothing; 1..17: 2^0..2^16 slots; 30 drop; 31 reject
//! ```
//!
//! It lives in the packet's priority between two lookups, because the kernel refuses to read a register that the same rule
//! has not written, and because nft 1.0.6 can't print a map whose key comes from another map. The priority takes part in no
//! routing decision (a mark does), and is given back before the packet is routed.

/// A word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(pub u32);

/// The bits of a word that name a set of backends: kind and id, where they stand in the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// What a word's class says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No frontend.
    Nothing,
    /// Spread over a set whose slots are drawn below `2^exponent`.
    Spread {
        /// The set.
        set: SetId,
        /// The number of slots drawn from is two to the power of this.
        exponent: u32,
    },
    /// Dropped.
    Drop,
    /// Refused.
    Reject,
}

/// The bits of the kind.
pub const KIND: u32 = 0xf000_0000;
/// The bits of a plain set's name.
pub const PLAIN_SET: u32 = 0xffff_ffc0;
/// The bits of a sticky set's name.
pub const STICKY_SET: u32 = 0xffff_c000;
/// Says that a word is a token.
pub const TOKEN: u32 = 1 << 13;
/// The bits of a token's endpoint number.
pub const NUMBER: u32 = TOKEN - 1;
/// Says that source ranges apply.
pub const RANGED: u32 = 1 << 5;
/// The bits of the class.
pub const CLASS: u32 = 0x1f;
/// The class that drops.
pub const CLASS_DROP: u32 = 30;
/// The class that refuses.
pub const CLASS_REJECT: u32 = 31;
/// Slots are drawn below 2^0 up to 2^16.
pub const EXPONENTS: std::ops::RangeInclusive<u32> = 0..=16;
/// The most backends of a plain set.
pub const PLAIN_MAX: usize = 1 << 16;
/// The most backends of a sticky set.
pub const STICKY_MAX: usize = 1 << 13;
/// The number of affinity timeouts that can be in use at once.
pub const KINDS: u32 = 15;

/// The exponent of the smallest power of two that holds so many slots.
pub fn exponent(slots: usize) -> u32 {
    slots.next_power_of_two().trailing_zeros()
}

impl SetId {
    /// The set of a kind with an id; the id is cut to the bits that there are.
    pub fn new(kind: u32, id: u32) -> SetId {
        match kind {
            0 => SetId(id << 6 & !KIND),
            _ => SetId(kind << 28 | (id << 14 & !KIND)),
        }
    }

    /// How many ids a kind has.
    pub fn ids(kind: u32) -> u32 {
        if kind == 0 { 1 << 22 } else { 1 << 14 }
    }

    /// The kind.
    pub fn kind(self) -> u32 {
        self.0 >> 28
    }

    /// The token of an endpoint.
    pub fn token(self, number: u16) -> Word {
        Word(self.0 | TOKEN | u32::from(number))
    }

    /// The most backends that the set can hold.
    pub fn capacity(self) -> usize {
        if self.kind() == 0 { PLAIN_MAX } else { STICKY_MAX }
    }
}

impl Word {
    /// Spreads over so many slots of a set.
    pub fn spread(set: SetId, slots: usize) -> Word {
        Word(set.0 | (exponent(slots) + 1))
    }

    /// Drops.
    pub fn drop() -> Word {
        Word(CLASS_DROP)
    }

    /// Refuses.
    pub fn reject() -> Word {
        Word(CLASS_REJECT)
    }

    /// The same, for the sources in the range sets only.
    pub fn ranged(self, ranged: bool) -> Word {
        Word(if ranged { self.0 | RANGED } else { self.0 & !RANGED })
    }

    /// Whether source ranges apply.
    pub fn is_ranged(self) -> bool {
        self.0 & RANGED != 0
    }

    /// The set whose bits are in the word.
    pub fn set(self) -> SetId {
        SetId(self.0 & if self.0 & KIND == 0 { PLAIN_SET } else { STICKY_SET })
    }

    /// What the class says.
    pub fn outcome(self) -> Outcome {
        match self.0 & CLASS {
            CLASS_DROP => Outcome::Drop,
            CLASS_REJECT => Outcome::Reject,
            class @ 1..=17 => Outcome::Spread { set: self.set(), exponent: class - 1 },
            _ => Outcome::Nothing,
        }
    }

    /// A token's set and endpoint number.
    pub fn as_token(self) -> Option<(SetId, u16)> {
        (self.0 & KIND != 0 && self.0 & TOKEN != 0).then_some((self.set(), (self.0 & NUMBER) as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_it_was_made_of() {
        for (kind, id) in [(0, 0), (0, (1 << 22) - 1), (1, 0), (15, (1 << 14) - 1)] {
            let set = SetId::new(kind, id);
            assert_eq!(set.kind(), kind);
            let word = Word::spread(set, 9).ranged(true);
            assert_eq!(word.outcome(), Outcome::Spread { set, exponent: 4 });
            assert!(word.is_ranged());
            if kind > 0 {
                assert_eq!(set.token(8191).as_token(), Some((set, 8191)));
            }
        }
        assert_eq!(Word::drop().outcome(), Outcome::Drop);
        assert_eq!(Word::reject().ranged(true).outcome(), Outcome::Reject);
        assert_eq!(Word(0).outcome(), Outcome::Nothing);
    }

    #[test]
    fn classes_are_the_powers_of_two() {
        let exponents: Vec<u32> = [1, 2, 3, 4, 5, 8, 9, 65_536].into_iter().map(exponent).collect();
        assert_eq!(exponents, [0, 1, 2, 2, 3, 3, 4, 16]);
    }
}
