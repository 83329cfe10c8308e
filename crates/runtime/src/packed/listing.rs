//! The graph as a listing, one line per node, which is both what the file stores and what people read:
//!
//! ```text
//! input image[_,3,32,32]
//! Conv conv1 0 .weight[16,3,3,3] dilations=[1,1] group=1 pads=[1,1,1,1] strides=[1,1]
//! BatchNormalization bn1 2 .weight[16] .bias[16] .running_mean[16]=0 .running_var[16]=1 epsilon=0f
//! Relu relu1 7
//! outputs 8
//! ```
//!
//! Values are numbered in the order in which they appear: inputs, constants, results of nodes. A constant is defined
//! where it is first needed, so the numbering of a model read from a file is that of the model written.

use bitsmith_graph::{Attrs, Data, Dim, Graph, Op, Tensor, ValueId};

use super::text::{escape, float, joined, list, number, parse_attr, print_attr, unescape};
use crate::error::{Error, Kind};

/// Attributes are written as they mean in this version of ONNX's operator set.
pub(super) const OPSET: u32 = 25;

/// A line of the listing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    Input { name: String, dims: Vec<Dim> },
    Constant(Constant),
    Node { name: String, op: Op, inputs: Vec<Operand>, outputs: Vec<String> },
}

/// Something a node reads.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Absent,
    Value(usize),
    Constant(Constant),
}

/// A constant's definition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Constant {
    pub name: String,
    pub shape: Vec<usize>,
    /// The value of all elements, where they are floats and equal: such a constant has no bytes.
    pub fill: Option<f32>,
}

/// The listing of a graph. `fill_of` says which constants are written as a fill.
pub(super) fn print(graph: &Graph, fill_of: impl Fn(ValueId) -> Option<f32>) -> String {
    let ids: Vec<_> = graph.value_ids().collect();
    let producers = graph.producers();
    let mut out = String::new();
    let constant = |id: ValueId, tensor: &Tensor, node: Option<&str>| {
        let fill = fill_of(id).map_or(String::new(), |v| format!("={}", float(&v)));
        let name = constant_name(&graph.value(id).name, node);
        format!("{name}[{}]{fill}", joined(tensor.shape(), usize::to_string))
    };
    let mut next = 0;
    while next < ids.len() {
        let id = ids[next];
        if let Some(input) = graph.inputs().iter().find(|i| i.value == id) {
            let dim = |d: &Dim| if let Dim::Fixed(n) = d { n.to_string() } else { "_".to_owned() };
            out += &format!("input {}[{}]\n", escape(&graph.value(id).name), joined(&input.dims, dim));
            next += 1;
            continue;
        }
        // Constants from here on that the next node reads, in the order of its operands, are defined on its line.
        let run = ids[next..]
            .iter()
            .take_while(|&&id| graph.constant(id).is_some() && producers[id.index()].is_none())
            .count();
        let node = ids.get(next + run).and_then(|id| producers[id.index()]).map(|n| &graph.nodes()[n]);
        let mut inline = Vec::new();
        if let Some(node) = node {
            inline =
                node.inputs.iter().flatten().copied().filter(|id| (next..next + run).contains(&id.index())).collect();
            let mut expected = next + run - inline.len();
            let in_order = inline.iter().all(|id| std::mem::replace(&mut expected, id.index() + 1) == id.index());
            if !in_order {
                inline.clear();
            }
        }
        for &id in &ids[next..next + run - inline.len()] {
            if let Some(tensor) = graph.constant(id) {
                out += &format!("const {}\n", constant(id, tensor, None));
            }
        }
        next += run;
        let Some(node) = node else { continue };
        out += &format!("{} {}", node.op.name(), escape(&node.name));
        for input in &node.inputs {
            out += &match input {
                None => " -".to_owned(),
                Some(id) => match graph.constant(*id) {
                    Some(tensor) if inline.contains(id) => format!(" {}", constant(*id, tensor, Some(&node.name))),
                    _ => format!(" {}", id.index()),
                },
            };
        }
        for (key, value) in &needed_attrs(&node.op).0 {
            out += &format!(" {}={}", escape(key), print_attr(value));
        }
        let outputs: Vec<_> = node.outputs.iter().map(|&id| graph.value(id).name.as_str()).collect();
        if outputs != [node.name.as_str()] {
            out += " ->";
            outputs.iter().for_each(|name| out += &format!(" {}", escape(name)));
        }
        out.push('\n');
        next += node.outputs.len();
    }
    let outputs: Vec<_> = graph.outputs().iter().map(|id| format!(" {}", id.index())).collect();
    out + "outputs" + &outputs.concat() + "\n"
}

/// A constant's name, without the name of its node where it begins with it: `conv1.weight` of `conv1` is `.weight`.
fn constant_name(name: &str, node: Option<&str>) -> String {
    match node.filter(|n| !n.is_empty()).and_then(|node| name.strip_prefix(node)).filter(|rest| rest.starts_with('.')) {
        Some(rest) => escape(rest),
        None => match escape(name) {
            token if token.starts_with('.') => token.replacen('.', "%2E", 1),
            token => token,
        },
    }
}

/// The attributes without those that reading would supply anyway. No operator is known here by name.
fn needed_attrs(op: &Op) -> Attrs {
    let mut attrs = op.attrs();
    for key in op.attrs().0.keys() {
        let mut without = attrs.clone();
        without.0.remove(key);
        if Op::from_attrs(op.name(), &without, OPSET).as_ref() == Ok(op) {
            attrs = without;
        }
    }
    attrs
}

/// The inverse of [`print`]: lines and the numbers of the outputs.
pub(super) fn parse(text: &str, opset: u32) -> Result<(Vec<Line>, Vec<usize>), Error> {
    let mut lines = Vec::new();
    let mut outputs = None;
    for (index, line) in text.lines().enumerate() {
        let here = |e: Error| e.at(format!("line {} of the graph", index + 1));
        if outputs.is_some() {
            return Err(here(Error::corrupt("follows the outputs")));
        }
        match line.split_once(' ').unwrap_or((line, "")) {
            ("outputs", "") => outputs = Some(vec![]),
            ("outputs", rest) => outputs = Some(rest.split(' ').map(number).collect::<Result<_, _>>().map_err(here)?),
            (kind, rest) => lines.push(parse_line(kind, rest, opset).map_err(here)?),
        }
    }
    Ok((lines, outputs.ok_or_else(|| Error::corrupt("the graph ends without its outputs"))?))
}

fn parse_line(kind: &str, rest: &str, opset: u32) -> Result<Line, Error> {
    if kind == "input" {
        let at = rest.find('[').ok_or_else(|| Error::corrupt("an input needs its dimensions"))?;
        let (name, dims) = rest.split_at(at);
        let dim = |d: &str| if d == "_" { Ok(Dim::Batch) } else { number(d).map(Dim::Fixed) };
        let dims = list(dims, dim).ok_or_else(|| Error::corrupt(format!("`{dims}` are no dimensions")))??;
        return Ok(Line::Input { name: unescape(name)?, dims });
    }
    if kind == "const" {
        return parse_constant(rest, "").map(Line::Constant);
    }
    let mut tokens = rest.split(' ');
    let name = unescape(tokens.next().unwrap_or_default())?;
    let (mut inputs, mut attrs) = (Vec::new(), Attrs::new());
    let mut names_follow = false;
    for token in tokens.by_ref() {
        if token == "->" {
            names_follow = true;
            break;
        }
        // A constant has its bracket before any equals sign, an attribute after.
        let (bracket, equals) = (token.find('['), token.find('='));
        match (bracket, equals) {
            (Some(b), e) if e.is_none_or(|e| b < e) => inputs.push(Operand::Constant(parse_constant(token, &name)?)),
            (_, Some(e)) => {
                attrs.0.insert(unescape(&token[..e])?, parse_attr(&token[e + 1..])?);
            }
            _ if token == "-" => inputs.push(Operand::Absent),
            _ => inputs.push(Operand::Value(number(token)?)),
        }
    }
    let outputs = match names_follow {
        false => vec![name.clone()],
        true => tokens.map(unescape).collect::<Result<_, _>>()?,
    };
    let op = Op::from_attrs(kind, &attrs, opset).map_err(|e| e.at(&name))?;
    Ok(Line::Node { name, op, inputs, outputs })
}

fn parse_constant(token: &str, node: &str) -> Result<Constant, Error> {
    let bad = || Error::corrupt(format!("`{token}` is not a constant"));
    let (name, rest) = token.split_at(token.find('[').ok_or_else(bad)?);
    let (shape, fill) = match rest.split_once('=') {
        Some((shape, fill)) => (shape, Some(number(fill)?)),
        None => (rest, None),
    };
    let shape = list(shape, number).ok_or_else(bad)??;
    let relative = name.starts_with('.') && !node.is_empty();
    let name = unescape(name)?;
    Ok(Constant { name: if relative { format!("{node}{name}") } else { name }, shape, fill })
}

/// Builds the graph. `value_of` is asked for every constant, with its number.
pub(super) fn build(
    lines: Vec<Line>,
    outputs: &[usize],
    mut value_of: impl FnMut(usize, &Constant) -> Result<Tensor, Error>,
) -> Result<Graph, Error> {
    let mut graph = Graph::new();
    let mut ids: Vec<ValueId> = Vec::new();
    let missing = |index: usize| Error::corrupt(format!("value {index} is not defined before its use"));
    for line in lines {
        match line {
            Line::Input { name, dims } => ids.push(graph.add_input(&name, dims)?),
            Line::Constant(constant) => {
                let tensor = value_of(ids.len(), &constant).map_err(|e| e.at(&constant.name))?;
                ids.push(graph.add_constant(&constant.name, tensor)?);
            }
            Line::Node { name, op, inputs, outputs } => {
                let mut operands = Vec::with_capacity(inputs.len());
                for input in inputs {
                    operands.push(match input {
                        Operand::Absent => None,
                        Operand::Value(index) => Some(*ids.get(index).ok_or_else(|| missing(index).at(&name))?),
                        Operand::Constant(constant) => {
                            let tensor = value_of(ids.len(), &constant).map_err(|e| e.at(&constant.name))?;
                            ids.push(graph.add_constant(&constant.name, tensor)?);
                            ids.last().copied()
                        }
                    });
                }
                let names: Vec<_> = outputs.iter().map(String::as_str).collect();
                ids.extend(graph.add_node(&name, op, &operands, &names)?);
            }
        }
    }
    let outputs = outputs.iter().map(|&i| ids.get(i).copied().ok_or_else(|| missing(i))).collect::<Result<_, _>>()?;
    graph.set_outputs(outputs);
    Ok(graph)
}

/// The number of values that a line defines, and its constants with their numbers.
pub(super) fn constants(lines: &[Line]) -> Vec<(usize, &Constant)> {
    let mut out = Vec::new();
    let mut next = 0;
    for line in lines {
        match line {
            Line::Input { .. } => next += 1,
            Line::Constant(constant) => {
                out.push((next, constant));
                next += 1;
            }
            Line::Node { inputs, outputs, .. } => {
                for input in inputs {
                    if let Operand::Constant(constant) = input {
                        out.push((next, constant));
                        next += 1;
                    }
                }
                next += outputs.len();
            }
        }
    }
    out
}

/// The value of all elements of a float constant, if they are equal bit for bit and finite.
pub(super) fn uniform(tensor: &Tensor) -> Option<f32> {
    let values = match tensor.data() {
        Data::F32(values) => values,
        _ => return None,
    };
    let first = values.first().copied().unwrap_or(0.0);
    let equal = first.is_finite() && values.iter().all(|v| v.to_bits() == first.to_bits());
    equal.then_some(first)
}

/// Refuses what a listing cannot express.
pub(super) fn check_names(graph: &Graph) -> Result<(), Error> {
    match graph.find("__metadata__").filter(|&id| graph.constant(id).is_some()) {
        Some(_) => Err(Error::new(Kind::Unsupported, "this name is reserved by safetensors: rename the constant")
            .at("__metadata__")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_graph::ops::{Add, BatchNormalization, Clip, Split};
    use bitsmith_graph::zoo::{self, ZooOptions};

    fn round_trip(graph: &Graph) -> String {
        let text = print(graph, |id| graph.constant(id).and_then(uniform));
        let (lines, outputs) = parse(&text, OPSET).unwrap();
        let back = build(lines, &outputs, |_, constant| {
            Ok(graph.constant(graph.find(&constant.name).unwrap()).unwrap().clone())
        });
        assert_eq!(&back.unwrap(), graph, "{text}");
        text
    }

    #[test]
    fn architectures_read_back_as_they_were() {
        for name in ["resnet20", "resnet8", "mobilenetv2", "squeezenet1_1", "cnn", "mlp"] {
            round_trip(&zoo::build(name, &ZooOptions::default()).unwrap().graph);
        }
    }

    #[test]
    fn odd_graphs_read_back_too() {
        let mut g = Graph::new();
        let late = g.add_constant(".late", Tensor::floats(vec![1.0, 2.0])).unwrap();
        let x = g.add_input("in put[%]", vec![Dim::Batch, Dim::Fixed(4)]).unwrap();
        let unused = g.add_constant("unused", Tensor::ints(vec![3])).unwrap();
        let halves = g.add_node("half", Split { axis: 1, sizes: None, outputs: 2 }, &[Some(x)], &["a", "->"]).unwrap();
        let sum = g.add("", Add, &[halves[0], late]).unwrap();
        let c = g.add_constant("clip.x", Tensor::floats(vec![5.0, 6.0])).unwrap();
        let clip = g.add("clip", Clip { min: None, max: Some(6.0) }, &[sum]).unwrap();
        let d = g.add_constant("add.two", Tensor::floats(vec![5.0])).unwrap();
        let both = g.add("add", Add, &[c, d]).unwrap();
        let twice = g.add_node("twice", Add, &[Some(both), Some(both), None], &["twice"]).unwrap();
        g.set_outputs(vec![clip, twice[0], unused]);
        let text = round_trip(&g);
        let expected = "const %2Elate[2]\ninput in%20put%5B%25%5D[_,4]\nconst unused[1]\nSplit half 1 axis=1 num_outputs=2 -> a ->\n\
            Add % 3 0\nconst clip.x[2]\nClip clip 5 max=6f\nAdd add 6 .two[1]=5\nAdd twice 9 9 -\noutputs 7 10 2\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn attributes_that_are_defaults_are_left_out() {
        assert_eq!(needed_attrs(&BatchNormalization::default().into()), Attrs::new());
        let frozen = BatchNormalization { epsilon: 0.0, momentum: 0.9 };
        assert_eq!(needed_attrs(&frozen.into()), Attrs::new().with_float("epsilon", 0.0));
    }

    #[test]
    fn broken_listings_are_errors() {
        let fails = |text: &str| {
            let built = parse(text, OPSET).and_then(|(lines, outputs)| {
                build(lines, &outputs, |_, c| Ok(Tensor::f32(c.shape.clone(), vec![0.0; c.shape.iter().product()])?))
            });
            built.map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(fails(""), "the graph ends without its outputs");
        assert_eq!(fails("outputs 0\n"), "value 0 is not defined before its use");
        assert_eq!(fails("Relu r 1\noutputs 0\n"), "`r`: value 1 is not defined before its use");
        assert_eq!(fails("Rleu r 0\noutputs 0\n"), "`r`: operator `Rleu` is not known here");
        assert_eq!(
            fails("input x[_,a]\noutputs 0\n"),
            "`line 1 of the graph`: `a` is not a number of the kind expected"
        );
        assert_eq!(fails("input x[_]\ninput x[_]\noutputs 0\n"), "`x`: two values have this name");
        assert_eq!(fails("outputs 0\ninput x[_]\n"), "`line 2 of the graph`: follows the outputs");
        for text in ["Relu", "Relu ", "Relu r 0 ->", "const a", "const a[2", "Clip c 0 max=x", "input x", "Relu r -1"] {
            fails(&format!("{text}\noutputs\n"));
        }
    }
}
