// llama.cpp's float32 logits: llama-logits N ID... MODEL.gguf... writes MODEL.gguf.f32, N rows, for each that it takes.
// Keys and values are float32 and attention is the plain one, so that weights in F32 are all that is computed with.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "llama.h"

static bool run(const std::string & path, std::vector<llama_token> ids) {
    llama_model_params how = llama_model_default_params();
    how.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(path.c_str(), how);
    if (!model) return false;
    const int n = int(ids.size());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = n;
    params.n_outputs_max = n;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) return false;
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    bool done = llama_decode(context, batch) == 0;
    if (done) {
        const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
        std::FILE * out = std::fopen((path + ".f32").c_str(), "wb");
        for (int i = 0; i < n; i++)
            std::fwrite(llama_get_logits_ith(context, i), sizeof(float), vocabulary, out);
        done = std::fclose(out) == 0;
    }
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return done;
}

int main(int argc, char ** argv) {
    llama_backend_init();
    const int n = std::atoi(argv[1]);
    std::vector<llama_token> ids;
    for (int i = 0; i < n; i++) ids.push_back(std::atoi(argv[2 + i]));
    for (int i = 2 + n; i < argc; i++)
        if (!run(argv[i], ids)) std::fprintf(stderr, "REFUSED %s\n", argv[i]);
}
