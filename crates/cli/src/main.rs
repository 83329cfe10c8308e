//! The bitsmith command.
fn main() {}
