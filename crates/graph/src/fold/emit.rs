//! The end of folding: live nodes and what they read become a graph.

use std::collections::HashMap;

use super::{Known, Pending};
use crate::error::{Error, Kind};
use crate::graph::{Graph, ValueId};
use crate::tensor::{Data, Tensor};

/// Writes live nodes and what they read into a graph.
pub(super) struct Emit {
    pub graph: Graph,
    pub known: HashMap<String, Known>,
    /// Node names taken, and how often each was asked for.
    pub names: HashMap<String, usize>,
}

impl Emit {
    pub fn node(&mut self, node: &Pending) -> Result<(), Error> {
        let inputs = node
            .inputs
            .iter()
            .map(|name| name.as_deref().map(|n| self.value(n)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let layer = inputs.iter().flatten().find_map(|&id| self.layer_name(id));
        let name = self.unique(layer.as_ref().unwrap_or(&node.name), &node.op.name().to_lowercase());
        let outputs: Vec<_> = node.outputs.iter().map(String::as_str).collect();
        self.graph.add_node(&name, node.op.clone(), &inputs, &outputs)?;
        Ok(())
    }

    /// The name of the layer whose weight this is: `layer1.0.conv1` of `layer1.0.conv1.weight`. What exporters make up
    /// (`onnx::Conv_283`, `/layer1/Constant_output_0`) says nothing.
    fn layer_name(&self, id: ValueId) -> Option<String> {
        let value = self.graph.value(id);
        value.constant.as_ref()?;
        let (layer, _) = value.name.rsplit_once('.')?;
        let telling = !layer.is_empty() && !value.name.contains(['/', ':']) && !self.names.contains_key(layer);
        telling.then(|| layer.to_owned())
    }

    /// A node name that is not taken yet.
    pub fn unique(&mut self, name: &str, kind: &str) -> String {
        let name = match name {
            "" => format!("{kind}_{}", self.graph.nodes().len()),
            name => name.to_owned(),
        };
        let mut unique = name.clone();
        while self.names.contains_key(&unique) {
            // The count of a base name goes on where it stopped, so that many equal names take linear time.
            let count = self.names.entry(name.clone()).or_insert(1);
            *count += 1;
            unique = format!("{name}_{count}");
        }
        self.names.insert(unique.clone(), 1);
        unique
    }

    /// The value of this name; constants are added when they are first read.
    pub fn value(&mut self, name: &str) -> Result<ValueId, Error> {
        if let Some(id) = self.graph.find(name) {
            return Ok(id);
        }
        match self.known.get_mut(name) {
            Some(Known::Constant(tensor)) => {
                let tensor = std::mem::replace(tensor, Tensor::new([0], Data::F32(vec![]))?);
                self.graph.add_constant(name, tensor)
            }
            Some(Known::PerBatch(_)) => {
                Err(Error::new(Kind::Structure, "depends on the batch size alone: that is no output").at(name))
            }
            _ => Err(Error::new(Kind::Structure, "nothing writes this value").at(name)),
        }
    }
}
