//! What the zone says: pure tables, histories, and a server with sockets.

mod fixture; // objects, questions, and how an answer reads
mod histories; // a zone that was changed is the zone made anew
mod packets; // any octets at all
mod promises; // each row of the specification
mod serving; // UDP and TCP, upstreams, the end
