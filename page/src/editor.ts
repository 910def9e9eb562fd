/** What a person does, and what follows from it: requests, answers, steps that can be undone. */
import { automask, promptFields, segment } from "./api";
import { counted } from "./dom";
import { bestOf, newDraft, nextId, withDraftKept } from "./drafts";
import { History } from "./history";
import { COLORS, emptySnapshot, type Box, type Draft, type Point, type Snapshot } from "./model";
import { readPicture, type Picture } from "./picture";
import { isAbort } from "./problem";
import type { Asked } from "./snippets";

export interface Search {
  done: number;
  total: number;
}

export class Editor {
  picture: Picture | null = null;
  type = "";
  selected: number | null = null;
  hovered: number | null = null;
  /** Whether the server works on the current object. */
  waiting = false;
  /** How far the search for all objects is; null if there is none. */
  search: Search | null = null;
  /** What to say after a step that shows nothing. */
  notice = "";
  /** How the last search ended. */
  found = "";
  /** The last request. */
  asked: Asked | null = null;

  private readonly history = new History<Snapshot>(emptySnapshot());
  private promptAbort = new AbortController();
  private searchAbort = new AbortController();
  private pictureAbort = new AbortController();
  private encoded: Promise<void> = Promise.resolve();
  private opening = 0;

  constructor(
    private readonly changed: () => void,
    private readonly failed: (error: unknown) => void,
  ) {}

  get now(): Snapshot {
    return this.history.present;
  }

  get canUndo(): boolean {
    return this.history.canUndo;
  }

  get canRedo(): boolean {
    return this.history.canRedo;
  }

  /**
   * Open a picture in place of the one before, and let the server encode it.
   *
   * Return whether it is open now. It is not if another one was opened while it was read.
   */
  async open(file: File): Promise<boolean> {
    const turn = ++this.opening;
    let picture: Picture;
    try {
      picture = await readPicture(file);
    } catch (error) {
      if (turn !== this.opening) return false;
      throw error;
    }
    if (turn !== this.opening) {
      for (const level of picture.levels) level.close();
      return false;
    }
    this.promptAbort.abort();
    this.searchAbort.abort();
    this.picture = picture;
    this.selected = this.hovered = null;
    this.waiting = false;
    this.search = null;
    this.notice = this.found = "";
    this.asked = null;
    this.history.reset({ ...emptySnapshot(), classes: this.now.classes });
    this.changed();
    this.encode();
    return true;
  }

  /** Use another model from now on. */
  useType(type: string): void {
    this.type = type;
    this.encode();
  }

  /** Draw a box. A finished object is kept, because a box begins another one. */
  box(box: Box): void {
    const { draft } = this.now;
    const refines = draft !== null && draft.box === null && draft.masks === null;
    const before = refines ? this.now : withDraftKept(this.now);
    this.commit({ ...before, draft: newDraft(box, refines ? draft.points : []) });
  }

  /** Click a point: it refines the object that is being made, or begins one. */
  point(point: Point): void {
    const { draft } = this.now;
    if (draft === null && point.label === 0) {
      this.say("Mark the object first: a box around it, or a click on it.");
      return;
    }
    const points = [...(draft?.points ?? []), point];
    this.commit({ ...this.now, draft: newDraft(draft?.box ?? null, points) });
  }

  /** Ask again for the current object, if its request failed. */
  retry(): void {
    const { draft } = this.now;
    if (draft?.failed !== true) return;
    this.history.amend({ ...this.now, draft: { ...draft, masks: null, failed: false } });
    this.moved();
  }

  choose(mask: number): void {
    const { draft } = this.now;
    if (draft?.masks?.[mask] === undefined || draft.chosen === mask) return;
    this.commit({ ...this.now, draft: { ...draft, chosen: mask } });
  }

  /** Ask for all three masks of the current object. */
  showThree(): void {
    const { draft } = this.now;
    if (draft === null || draft.three) return;
    this.commit({ ...this.now, draft: { ...draft, three: true, masks: null, chosen: 0 } });
  }

  keep(): void {
    if (!this.now.draft?.masks?.length) return;
    this.commit(withDraftKept(this.now));
  }

  discard(): void {
    if (this.now.draft !== null) this.commit({ ...this.now, draft: null });
  }

  select(id: number | null): void {
    this.selected = id;
    this.changed();
  }

  hover(id: number | null): void {
    if (id === this.hovered) return;
    this.hovered = id;
    this.changed();
  }

  remove(id: number): void {
    if (this.selected === id) this.selected = null;
    this.commit({ ...this.now, items: this.now.items.filter((item) => item.id !== id) });
  }

  addClass(name: string): void {
    const { classes } = this.now;
    const old = classes.find((one) => one.name === name);
    if (old !== undefined) return this.useClass(old.id);
    const id = Math.max(...classes.map((one) => one.id)) + 1;
    const color = COLORS[(id - 1) % COLORS.length] as string;
    this.commit({ ...this.now, classes: [...classes, { id, name, color }], activeClass: id });
  }

  /** Give new objects this class, and the selected one. */
  useClass(id: number): void {
    const chosen = this.now.items.find((item) => item.id === this.selected);
    if (this.now.activeClass === id && (chosen?.classId ?? id) === id) return;
    const items = this.now.items.map((item) =>
      item.id === this.selected ? { ...item, classId: id } : item,
    );
    this.commit({ ...this.now, activeClass: id, items });
  }

  undo(): void {
    this.history.undo();
    this.found = "";
    this.moved();
  }

  redo(): void {
    this.history.redo();
    this.found = "";
    this.moved();
  }

  /** Find every object, and add them as one step. */
  async findAll(pointsPerSide: number): Promise<void> {
    const { picture } = this;
    if (picture === null || this.search !== null) return;
    const fields = { type: this.type, points_per_side: pointsPerSide };
    this.searchAbort = new AbortController();
    const { signal } = this.searchAbort;
    this.search = { done: 0, total: 0 };
    this.asked = { path: "sam/automask/", fields };
    this.found = "";
    this.changed();
    try {
      await this.encoded;
      if (signal.aborted) return;
      const masks = await automask(picture, fields, signal, (done, total) => {
        this.search = { done, total };
        this.changed();
      });
      if (signal.aborted) return;
      this.search = null;
      const first = nextId(this.now.items);
      const classId = this.now.activeClass;
      const items = masks.map((mask, index) => ({ ...mask, id: first + index, classId }));
      this.found = `Found ${masks.length === 0 ? "no objects" : counted(masks.length, "object")}.`;
      this.commit({ ...this.now, items: [...this.now.items, ...items] });
    } catch (error) {
      if (isAbort(error)) return;
      this.search = null;
      this.fail(error);
    }
  }

  /** Stop the search. The server ends it, too, because the connection closes. */
  stop(): void {
    if (this.search === null) return;
    this.searchAbort.abort();
    this.search = null;
    this.found = "Stopped. Nothing was added.";
    this.changed();
  }

  private commit(next: Snapshot): void {
    this.history.commit(next);
    this.moved();
  }

  /** Follow the present: cancel what was asked for another draft, and ask for this one. */
  private moved(): void {
    this.promptAbort.abort();
    this.waiting = false;
    if (!this.now.items.some((item) => item.id === this.selected)) this.selected = null;
    const { draft } = this.now;
    if (draft !== null && draft.masks === null) void this.ask(draft);
    this.changed();
  }

  private async ask(draft: Draft): Promise<void> {
    const { picture } = this;
    if (picture === null) return;
    const fields = promptFields(this.type, draft, draft.three);
    this.promptAbort = new AbortController();
    const { signal } = this.promptAbort;
    this.asked = { path: "sam/", fields };
    this.notice = "";
    this.waiting = true;
    try {
      await this.encoded;
      if (signal.aborted) return;
      const masks = await segment(picture, fields, signal);
      if (signal.aborted) return;
      this.waiting = false;
      this.history.amend({ ...this.now, draft: { ...draft, masks, chosen: bestOf(masks) } });
      this.changed();
    } catch (error) {
      if (signal.aborted) return;
      this.waiting = false;
      this.history.amend({ ...this.now, draft: { ...draft, masks: [], failed: true } });
      this.fail(error);
    }
  }

  /** Let the server encode the picture, so that the first click is answered at once. */
  private encode(): void {
    this.pictureAbort.abort();
    this.pictureAbort = new AbortController();
    const { picture, type } = this;
    if (picture === null || type === "") return;
    const middle = { x: picture.width / 2, y: picture.height / 2, label: 1 as const };
    const fields = promptFields(type, { box: null, points: [middle] }, false);
    this.encoded = segment(picture, fields, this.pictureAbort.signal).then(
      () => undefined,
      (error: unknown) => {
        if (!isAbort(error)) this.fail(error);
      },
    );
  }

  private say(notice: string): void {
    this.notice = notice;
    this.changed();
  }

  private fail(error: unknown): void {
    this.changed();
    this.failed(error);
  }
}
