//! Roundings of activations, which files write as pairs of nodes, become quantization sites.

use std::collections::{HashMap, HashSet};

use super::{Folder, Known, Pending, RawNode, values};
use crate::error::{Error, Kind};
use crate::ops::Identity;
use crate::quant::QParams;
use crate::tensor::{Data, Tensor};

impl Folder {
    /// Moves each rounding to the value that it rounds, where nothing else reads that value; returns the grids by value.
    ///
    /// The rounded value keeps the name that its readers know, unless what is rounded is an input of the network.
    pub(super) fn settle_roundings(&mut self, outputs: &[&str]) -> Vec<(String, QParams)> {
        let mut reads: HashMap<&str, usize> = HashMap::new();
        let read = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).map(String::as_str);
        for name in read.chain(outputs.iter().map(|&o| self.aliases.get(o).map_or(o, |(source, _)| source))) {
            *reads.entry(name).or_default() += 1;
        }
        let inputs: HashSet<&str> = self.inputs.iter().map(|(name, _)| name.as_str()).collect();
        let (mut sites, mut renamed, mut gone) = (vec![], HashMap::new(), HashSet::new());
        let mut moved: HashSet<&str> = HashSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let (Some(params), Some(Some(source))) = (&node.rounding, node.inputs.first()) else { continue };
            let rounded = &node.outputs[0];
            let is_input = inputs.contains(source.as_str());
            // Where one rounding follows another at once, the second keeps its node.
            let kept = reads.get(source.as_str()) != Some(&1)
                || moved.contains(source.as_str())
                || is_input
                    && (outputs.contains(&rounded.as_str()) || self.aliases.values().any(|(s, _)| s == rounded));
            if kept {
                sites.push((rounded.clone(), params.clone()));
                continue;
            }
            gone.insert(index);
            moved.insert(rounded);
            let (from, to) = if is_input { (rounded, source) } else { (source, rounded) };
            renamed.insert(from.clone(), to.clone());
            sites.push((to.clone(), params.clone()));
        }
        let mut index = 0;
        self.nodes.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
        let rename = |name: &mut String| {
            if let Some(to) = renamed.get(name) {
                name.clone_from(to);
            }
        };
        for node in &mut self.nodes {
            node.inputs.iter_mut().flatten().for_each(rename);
            node.outputs.iter_mut().for_each(rename);
        }
        sites
    }

    /// Takes in the nodes that round a computed value to integers and back. Whether this is one.
    pub(super) fn round(&mut self, node: &RawNode<'_>, names: &[Option<String>]) -> Result<bool, Error> {
        let Some(Some(source)) = names.first() else { return Ok(false) };
        match (node.op_type, &self.known[source]) {
            ("QuantizeLinear", Known::Computed(_)) => {
                let params = self.grid(node, names)?;
                if let Some(Some(output)) = node.outputs.first() {
                    self.define(output, Known::Codes(source.clone(), params))?;
                }
                Ok(true)
            }
            ("DequantizeLinear", Known::Codes(before, params)) => {
                let (before, params) = (before.clone(), params.clone());
                if self.grid(node, names)? != params {
                    return Err(Error::new(Kind::Quantization, "decodes with other numbers than it was encoded with"));
                }
                let shapes = self.shapes(&before)?;
                let Some(Some(output)) = node.outputs.first() else { return Ok(true) };
                self.define(output, Known::Computed(shapes))?;
                self.nodes.push(Pending {
                    name: node.name.to_owned(),
                    op: Identity.into(),
                    inputs: vec![Some(before)],
                    outputs: vec![(*output).to_owned()],
                    rounding: Some(params),
                });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The grid that a rounding node's scale and zero point describe.
    fn grid(&self, node: &RawNode<'_>, names: &[Option<String>]) -> Result<QParams, Error> {
        let given = values(&self.known, names, 0);
        let given = |index: usize| given.get(index).copied().flatten();
        let scale = given(1).and_then(Tensor::as_f32);
        let Some(&[scale]) = scale else {
            return Err(Error::new(Kind::Quantization, "an activation needs one constant scale for the whole tensor"));
        };
        let (signed, zero) = match given(2).map(Tensor::data) {
            None if node.attrs.int("output_dtype", 0)? == 0 => (false, 0),
            Some(Data::U8(v)) if v.len() == 1 => (false, v[0].into()),
            Some(Data::I8(v)) if v.len() == 1 => (true, v[0].into()),
            _ => {
                let detail = "an activation needs one zero point of an integer type of at most 8 bits";
                return Err(Error::new(Kind::Quantization, detail));
            }
        };
        let bits = names.get(2).and_then(|n| self.narrow.get(n.as_ref()?)).copied().unwrap_or(8);
        let params = QParams::per_tensor(bits, signed, scale, zero);
        params.check(1)?;
        Ok(params)
    }
}
