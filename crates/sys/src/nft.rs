//! nf_tables over netlink: expressions, sets, batches, dumps.
//!
//! The numbers are those of `include/uapi/linux/netfilter/nf_tables.h`. What is written for `nft list` alone (the userdata
//! that types the keys of a set) follows what nft 1.0.6 itself writes.

mod batch; // a transaction under construction
mod expression; // what rules are made of
mod monitor; // what is committed, and by whom
mod set; // declarations of sets and maps, typed keys
mod survey; // everybody's chains and rules, to read
mod table; // the socket: commit and dump

pub use batch::{Batch, ChainHook, Hook};
pub use expression::{
    Bytes, CtKey, DynsetOp, Expression, MetaKey, PayloadBase, Register, RejectWith, Verdict,
    masquerade_fully_random,
};
pub use monitor::{Heard, Membership, Monitor, Part, Touch, Transaction};
pub use set::{Field, SetDeclaration, SetFlags, comment_userdata, read_comment};
pub use survey::{SurveyedChain, SurveyedSet, SurveyedTable};
pub use table::{ChainInfo, CounterInfo, ElementInfo, HookInfo, Nftables, RuleInfo, SetInfo, TableInfo};

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `ip`
    Ip,
    /// `ip6`
    Ip6,
}

impl Family {
    /// `NFPROTO_…`.
    pub fn number(self) -> u8 {
        match self {
            Family::Ip => 2,
            Family::Ip6 => 10,
        }
    }

    /// Its name in `nft`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        }
    }
}

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// `struct nfgenmsg`: family, version, resource id in network order.
const fn general(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

const NEWTABLE: u16 = kind(0);
const GETTABLE: u16 = kind(1);
const DELTABLE: u16 = kind(2);
const NEWCHAIN: u16 = kind(3);
const GETCHAIN: u16 = kind(4);
const DELCHAIN: u16 = kind(5);
const NEWRULE: u16 = kind(6);
const GETRULE: u16 = kind(7);
const DELRULE: u16 = kind(8);
const NEWSET: u16 = kind(9);
const GETSET: u16 = kind(10);
const DELSET: u16 = kind(11);
const NEWSETELEM: u16 = kind(12);
const GETSETELEM: u16 = kind(13);
const DELSETELEM: u16 = kind(14);
const NEWGEN: u16 = kind(15);
const GETGEN: u16 = kind(16);
const NEWOBJ: u16 = kind(18);
const GETOBJ: u16 = kind(19);
const DELOBJ: u16 = kind(20);
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
