#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "core/error.h"
#include "core/topology.h"

namespace conclave {
namespace {

/// The places of `ranks` ranks that share one node.
void share_node(const Topology::Node& node, int ranks, const std::vector<size_t>& which, std::vector<Place>& places) {
  const auto processors = static_cast<int>(node.processors.size());
  for (int i = 0; i < ranks; ++i) {
    Place& place = places[which[static_cast<size_t>(i)]];
    place.nodes = {node.number};
    if (ranks > processors) place.processors = node.processors;
    else
      place.processors.assign(node.processors.begin() + processors * i / ranks, node.processors.begin() + processors * (i + 1) / ranks);
  }
}

std::optional<int> integer(std::string_view text) {
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

std::vector<Place> place_ranks(const Topology& machine, int ranks) {
  std::vector<Place> places(static_cast<size_t>(ranks));
  const auto nodes = static_cast<int>(machine.nodes.size());
  if (ranks <= nodes) {
    for (int r = 0; r < ranks; ++r)
      for (int n = nodes * r / ranks; n < nodes * (r + 1) / ranks; ++n) {
        const Topology::Node& node = machine.nodes[static_cast<size_t>(n)];
        places[static_cast<size_t>(r)].nodes.push_back(node.number);
        places[static_cast<size_t>(r)].processors.insert(places[static_cast<size_t>(r)].processors.end(), node.processors.begin(),
                                                         node.processors.end());
      }
    return places;
  }
  for (int n = 0; n < nodes; ++n) {
    std::vector<size_t> which;
    for (int r = 0; r < ranks; ++r)
      if (r * nodes / ranks == n) which.push_back(static_cast<size_t>(r));
    share_node(machine.nodes[static_cast<size_t>(n)], static_cast<int>(which.size()), which, places);
  }
  return places;
}

std::vector<Place> place_ranks(const Topology& machine, int ranks, std::string_view map) {
  const auto refuse = [&](std::string_view entry, const std::string& why) {
    throw Error(Error::Kind::bad_input,
                fmt::format("bind map \"{}\", entry \"{}\": {}; wanted: RANK:NODE for each of the {} ranks, like 0:0,1:0", map, entry,
                            why, ranks));
  };
  std::map<size_t, std::vector<size_t>> of_node;  // index of a node -> its ranks
  std::vector<bool> seen(static_cast<size_t>(ranks));
  for (size_t at = 0; at <= map.size();) {
    const size_t comma = std::min(map.find(',', at), map.size());
    const std::string_view entry = map.substr(at, comma - at);
    const size_t colon = std::min(entry.find(':'), entry.size());
    const auto rank = integer(entry.substr(0, colon)), number = integer(entry.substr(std::min(colon + 1, entry.size())));
    if (!rank || !number) refuse(entry, "not two whole numbers");
    if (*rank >= ranks || seen[static_cast<size_t>(*rank)])
      refuse(entry, fmt::format("rank {} is {}", *rank, *rank >= ranks ? "too large" : "named twice"));
    const auto node = std::ranges::find(machine.nodes, *number, &Topology::Node::number);
    if (node == machine.nodes.end()) refuse(entry, fmt::format("this host has no node {} that this process may use", *number));
    seen[static_cast<size_t>(*rank)] = true;
    of_node[static_cast<size_t>(node - machine.nodes.begin())].push_back(static_cast<size_t>(*rank));
    at = comma + 1;
  }
  if (const auto missing = std::ranges::find(seen, false); missing != seen.end())
    refuse("", fmt::format("rank {} is missing", missing - seen.begin()));
  std::vector<Place> places(static_cast<size_t>(ranks));
  for (auto& [node, which] : of_node) {
    std::ranges::sort(which);
    share_node(machine.nodes[node], static_cast<int>(which.size()), which, places);
  }
  return places;
}

std::string describe(const Place& place) {
  std::vector<int> sorted = place.processors;
  std::ranges::sort(sorted);
  std::string ranges;
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
    if (!ranges.empty()) ranges += ",";
    ranges += end - i == 1 ? std::to_string(sorted[i]) : fmt::format("{}-{}", sorted[i], sorted[end - 1]);
    i = end;
  }
  return fmt::format("{} {} of {} {}", sorted.size() == 1 ? "processor" : "processors", ranges,
                     place.nodes.size() == 1 ? "node" : "nodes", fmt::join(place.nodes, ","));
}

}  // namespace conclave
