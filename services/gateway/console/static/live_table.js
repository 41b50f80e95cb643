// The rows of the live page: new ones come in at the top, without the others being drawn anew. All texts are text.
export default {
  props: { rows: Array, headings: Object, caption: String, limit: Number },
  template: `
    <div class="scroll">
      <table class="passed">
        <caption>{{ caption }}</caption>
        <thead><tr>
          <th scope="col">{{ headings.at }}</th><th scope="col">{{ headings.kind }}</th>
          <th scope="col">{{ headings.user }}</th><th scope="col">{{ headings.words }}</th>
          <th scope="col">{{ headings.stages }}</th><th scope="col" class="number">{{ headings.took }}</th>
          <th scope="col">{{ headings.outcome }}</th>
        </tr></thead>
        <tbody>
          <tr v-for="row in shown" :key="row.id">
            <td class="at"><time :datetime="row.exact" :title="row.exact">{{ row.at }}</time></td>
            <td class="kind">{{ row.kind }}</td>
            <td class="user"><bdi :title="row.user">{{ row.user }}</bdi></td>
            <td class="words">
              <a :href="row.url" :class="{ id: !row.has_words }"><bdi>{{ row.words }}</bdi></a>
              <bdi v-if="row.reply" class="reply">{{ row.reply }}</bdi>
            </td>
            <td class="stages">
              <div v-if="row.stages.length" class="bar" role="img" :aria-label="row.spoken" :title="row.spoken">
                <div v-for="stage in row.stages" :class="'stage stage-' + stage.colour" :style="{ width: stage.width + '%' }"></div>
              </div>
            </td>
            <td class="took number">{{ row.took }}</td>
            <td class="outcome"><span :class="row.tone">{{ row.outcome }}</span><span v-if="row.found" class="quiet found">{{ row.found }}</span></td>
          </tr>
        </tbody>
      </table>
    </div>`,
  data() { return { shown: [...this.rows] }; },
  watch: { rows(value) { this.shown = [...value]; } },
  methods: {
    add(rows) {
      for (const row of rows) {
        const place = this.shown.findIndex((other) => other.id === row.id);
        if (place >= 0) this.shown.splice(place, 1, row);
        else this.shown.unshift(row);
      }
      this.shown.splice(this.limit);
    },
  },
};
