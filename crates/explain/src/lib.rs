//! Names the first cause and the remedy; reads everything, changes nothing.
//!
//! Two shells gather evidence: [`gather`] from an API as an ordinary client, [`kernel::read`] from the network namespace it runs
//! in. [`imagine`] makes it from manifests alone. The rest is pure: [`situation`] resolves the question and plans, [`diagnose`]
//! names what is wrong in a fixed order, [`report`] is what people and programs are shown.
//!
//! Absent on purpose: any write, to the API or to the kernel, and any opinion about where a connection should go (that is
//! `plan`, which is asked).

pub mod cause; // what can be wrong, in the order in which it is named
pub mod diagnose; // the causes of a situation
pub mod gather; // evidence from the API
pub mod imagine; // what manifests leave to the cluster: placeholders
pub mod kernel; // evidence from the kernel
pub mod objects; // what the API says
pub mod probe; // connections to backends, if asked for
pub mod question; // what is asked
pub mod report; // the answer
pub mod situation; // the question resolved, and planned

mod firewall; // what other tables do to a packet
mod near; // names that were meant

use jiff::Timestamp;

/// All that an answer is made from.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What is asked.
    pub question: question::Question,
    /// What the API, or manifests, say.
    pub objects: objects::Objects,
    /// How nodes were told to treat Services.
    pub told: situation::Told,
    /// What the kernel of one node says, where it could be read.
    pub kernel: Option<kernel::NodeKernel>,
    /// What came of connecting to backends, if that was asked for.
    pub probes: Option<Vec<probe::Probe>>,
    /// What was assumed, to be told with the answer.
    pub assumed: Vec<Assumed>,
    /// When it was gathered; none where time means nothing, as with manifests.
    pub now: Option<Timestamp>,
}

/// Something that was assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assumed {
    /// Of which Service; of all if none.
    pub service: Option<portolan_plan::model::ServiceName>,
    /// What.
    pub text: String,
}

impl From<String> for Assumed {
    fn from(text: String) -> Assumed {
        Assumed { service: None, text }
    }
}
