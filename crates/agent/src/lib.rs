//! Level-triggered: restart, replay and missed events all end in the same state.
