"use strict";
// The viewer of a case page. All it shows lies in the page; it asks nobody for anything.
(() => {
  const byId = (id) => document.getElementById(id);
  const said = JSON.parse(byId("case").textContent);
  const canvas = byId("canvas");

  function bytes(id) {
    const text = atob(byId(id).textContent.trim());
    const found = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) found[n] = text.charCodeAt(n);
    return found;
  }

  async function unzipped(packed) {
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  async function loadLibrary() {
    const url = URL.createObjectURL(new Blob([await unzipped(bytes("library"))], { type: "text/javascript" }));
    await new Promise((done, failed) => {
      const script = document.createElement("script");
      script.onload = done;
      script.onerror = () => failed(new Error("the viewer's library could not be started"));
      script.src = url;
      document.head.append(script);
    });
    URL.revokeObjectURL(url);
  }

  // RAS+ mm -> index in the file, rows of an affine 4x4.
  const indexOf = (mm) => said.index_from_world.map((row) => row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]);
  const direction = (value, positive, negative) => `${Math.abs(value).toFixed(1)} ${value >= 0 ? positive : negative}`;

  function place(mm) {
    const voxel = indexOf(mm).map((n) => Math.round(n)).join(", ");
    if (!said.spaced) return `voxel ${voxel}`;
    if (!said.placed || !said.oriented) {
      const [i, j, k] = indexOf(mm).map((n, axis) => n * said.spacing_mm[axis]);
      return `${i.toFixed(1)}, ${j.toFixed(1)}, ${k.toFixed(1)} mm from the first voxel · voxel ${voxel}`;
    }
    return `${direction(mm[0], "R", "L")}, ${direction(mm[1], "A", "P")}, ${direction(mm[2], "S", "I")} mm · voxel ${voxel}`;
  }

  async function start() {
    if (!canvas.getContext || !document.createElement("canvas").getContext("webgl2") || typeof DecompressionStream === "undefined") {
      document.body.dataset.viewer = "none";
      return;
    }
    byId("viewer").hidden = false;
    await loadLibrary();
    const nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.9, 0.9, 0.9, 0.7], crosshairWidth: 0.3, crosshairWidthUnit: "percent", crosshairGap: 5,
      isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientationTextVisible: said.oriented, showAllOrientationMarkers: true, isColorbar: true,
      multiplanarShowRender: 0, dragAndDropEnabled: false, isNearestInterpolation: false, logLevel: "error", loadingText: "",
      show3Dcrosshair: false, isResizeCanvas: true, scrollRequiresFocus: false,
    });
    await nv.attachToCanvas(canvas);
    const load = async (id, options) =>
      nv.addVolume(await niivue.NVImage.loadFromUrl({ url: await unzipped(bytes(id)), name: `${id}.nii`, ...options }));
    await load("layer-image", { colormap: "gray", cal_min: said.window[0], cal_max: said.window[1], trustCalMinMax: false, colorbarVisible: false });
    for (let n = 0; n < said.heatmaps.length; n++)
      await load(`layer-heatmap-${n}`, { colormap: "plasma", opacity: 0, cal_min: said.threshold, cal_max: 1, trustCalMinMax: false });
    if (said.lesion) await load("layer-outline", { colormap: "green", opacity: 0.9, cal_min: 0.5, cal_max: 1, colorbarVisible: false });
    control(nv);
  }

  function control(nv) {
    const [method, threshold, opacity, colours, planes, outline] =
      ["method", "threshold", "opacity", "colours", "planes", "outline"].map(byId);
    const [image, ...others] = nv.volumes;
    const heatmaps = others.slice(0, said.heatmaps.length);
    const shell = said.lesion ? others[others.length - 1] : null;
    method.append(...said.heatmaps.map((each, n) => new Option(each.name, n)));
    threshold.value = said.threshold;
    planes.append(...said.planes.map(([words, kind]) => new Option(words, kind)));
    byId("outline-label").hidden = !shell;

    function show() {
      const chosen = Number(method.value);
      heatmaps.forEach((each, n) => {
        if (each.colormap !== colours.value) nv.setColormap(each.id, colours.value);
        // After the colours: choosing them forgets the limits.
        // Colours from 0 to the maximum, and none below the threshold (1 would fade them in there).
        each.colormapType = 2;
        each.cal_min = Number(threshold.value);
        each.cal_max = 1;
        each.colorbarVisible = n === chosen;
        each.opacity = n === chosen && said.heatmaps[n].peak_mm ? Number(opacity.value) : 0;
      });
      if (shell) shell.opacity = outline.checked ? 0.9 : 0;
      nv.updateGLVolume();
      byId("threshold-value").textContent = Number(threshold.value).toFixed(2);
      byId("opacity-value").textContent = Number(opacity.value).toFixed(2);
      canvas.setAttribute("aria-label", `${said.heatmaps[chosen].name} on the image, from ${threshold.value} of its maximum`);
    }

    // The library chooses limits of its own while it loads.
    [image.cal_min, image.cal_max] = said.window;

    function goToPeak() {
      const peak = said.heatmaps[Number(method.value)].peak_mm;
      const mm = peak || said.centre_mm;
      nv.scene.crosshairPos = nv.mm2frac([mm[0], mm[1], mm[2]], 0, true);
      nv.createOnLocationChange();
      nv.drawScene();
    }

    nv.onLocationChange = (found) => {
      const values = found.values || [];
      const chosen = Number(method.value), share = values[1 + chosen], grey = values[0];
      const words = [place(found.mm)];
      if (grey) words.push(`image ${Number(grey.value).toPrecision(4)} ${said.unit}`);
      if (share) words.push(`relevance ${Number(share.value).toFixed(2)} of the maximum`);
      if (shell && values.length > 1 + heatmaps.length) words.push(values[1 + heatmaps.length].value > 0.5 ? "on the lesion's outline" : "");
      byId("where").textContent = words.filter(Boolean).join(" · ");
    };

    // By which array step of the picture's RAS copy each key moves, for the planes that are looked at.
    const [left, right] = [[1, 0, 0], [-1, 0, 0]];
    const keys = { ArrowLeft: left, ArrowRight: right, ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    const coronal = { ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], PageUp: [0, 1, 0], PageDown: [0, -1, 0] };
    const sagittal = { ...coronal, ArrowLeft: [0, 1, 0], ArrowRight: [0, -1, 0], PageUp: right, PageDown: left };
    const byPlanes = { 1: { ...keys, ...coronal }, 2: { ...keys, ...sagittal } };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key.toLowerCase() === "p") goToPeak();
      else {
        const step = (byPlanes[planes.value] || keys)[event.key];
        if (!step) return;
        nv.moveCrosshairInVox(...step);
      }
      event.preventDefault();
      event.stopImmediatePropagation();
    }, true);

    for (const each of [method, threshold, opacity, colours, outline]) each.addEventListener("input", show);
    method.addEventListener("input", goToPeak);
    planes.addEventListener("input", () => nv.setSliceType(Number(planes.value)));
    byId("peak").addEventListener("click", goToPeak);
    nv.setSliceType(Number(planes.value));
    show();
    goToPeak();
    byId("no-viewer").hidden = true;
    document.body.dataset.viewer = "ready";
    window.medcamViewer = nv;
  }

  start().catch((error) => {
    byId("viewer").hidden = true;
    byId("no-viewer").textContent = `The interactive viewer could not start (${error.message}); the figure below shows the planes through the peak.`;
    document.body.dataset.viewer = "failed";
  });
})();
