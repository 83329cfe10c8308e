//! bitsmith engine.
