// Edges as a table, and how an edge is.

import { nodeName, type Edge, type Node } from "./api.ts";
import * as format from "./format.ts";
import { ContainerLink, Note, Table } from "./parts.tsx";
import { strings } from "./strings.ts";
import type { Level } from "./summary.ts";

const MOST_ROWS = 200;

/** Segments sent again, of both ends. */
export const again = (edge: Edge) => (edge.client_side?.retransmits ?? 0) + (edge.server_side?.retransmits ?? 0);

export function level(edge: Edge): Level {
  const failed = edge.failed ?? 0;
  if (failed > 0 && failed >= 0.05 * ((edge.opened ?? 0) + failed)) return "bad";
  const segments = (edge.client_side?.segments_out ?? 0) + (edge.server_side?.segments_out ?? 0);
  return again(edge) >= 0.01 * segments && again(edge) > 0 ? "warn" : "ok";
}

const End = ({ node, query }: { node: Node; query: URLSearchParams }) =>
  "container" in node ? <ContainerLink container={node.container} query={query} /> : <span dir="auto">{nodeName(node)}</span>;

export function EdgeTable({ edges, query }: { edges: Edge[]; query: URLSearchParams }) {
  const text = strings.map;
  if (edges.length === 0) return <Note>{text.empty}</Note>;
  const columns = [text.client, text.server, text.port, text.connections, text.opened, text.failed, text.rate, text.back, text.rtt, text.again];
  return (
    <Table label={text.table} columns={columns} numbers={[2, 3, 4, 5, 6, 7, 8, 9]}>
      {edges.slice(0, MOST_ROWS).map((edge) => {
        const side = edge.client_side ?? edge.server_side;
        return (
          <tr>
            <th scope="row"><End node={edge.client} query={query} /></th>
            <td><End node={edge.server} query={query} /></td>
            <td class="number">{edge.port ?? strings.none}</td>
            <td class="number">{format.count(edge.connections)}</td>
            <td class="number">{format.count(edge.opened ?? 0)}</td>
            <td class="number">{format.count(edge.failed ?? 0)}</td>
            <td class="number">{format.rate(edge.rates?.sent_bytes ?? 0)}</td>
            <td class="number">{format.rate(edge.rates?.received_bytes ?? 0)}</td>
            <td class="number">{format.micros(side?.srtt_us)}</td>
            <td class="number">{format.count(again(edge))}</td>
          </tr>
        );
      })}
    </Table>
  );
}
