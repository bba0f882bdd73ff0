//! Makes the kernel equal to a plan in one transaction and can read it back; decides nothing.
