//! An address is never given twice nor taken from a healthy owner; who announces is computed alike on every node.
