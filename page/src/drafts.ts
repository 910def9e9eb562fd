/** What becomes of a draft: the object that a person is drawing. */
import type { Box, Draft, Item, Mask, Point, Snapshot } from "./model";

/** One click may mean a part or the whole, so SAM's three masks are asked for at once. */
export function newDraft(box: Box | null, points: Point[]): Draft {
  return { box, points, masks: null, chosen: 0, three: box === null && points.length === 1, failed: false };
}

/** Return the number of the next object. It is the object's number in the list and in the downloads. */
export function nextId(items: Item[]): number {
  return items.reduce((most, { id }) => Math.max(most, id), 0) + 1;
}

export function withDraftKept(snapshot: Snapshot): Snapshot {
  const { draft, items, activeClass } = snapshot;
  const mask = draft?.masks?.[draft.chosen];
  if (mask === undefined) return { ...snapshot, draft: null };
  const item = { ...mask, id: nextId(items), classId: activeClass };
  return { ...snapshot, draft: null, items: [...items, item] };
}

export function bestOf(masks: Mask[]): number {
  let best = 0;
  masks.forEach((mask, i) => {
    if (mask.quality > (masks[best] as Mask).quality) best = i;
  });
  return best;
}
