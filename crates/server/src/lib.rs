//! The only writer of the store; holds the protocol and no control loop.
