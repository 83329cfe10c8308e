//! Pieces that methods share, one idea per file. A new method looks here first and adds a block only for a new idea.

pub mod bins;
pub mod budget;
pub mod cost;
pub mod fit;
pub mod gate;
pub mod grid;
pub mod range;
pub mod searched;
pub mod temperature;
pub mod widths;
