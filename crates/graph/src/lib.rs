//! bitsmith graph.
