//! bitsmith formats.
