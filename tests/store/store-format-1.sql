BEGIN TRANSACTION;
CREATE TABLE format (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "format" VALUES(1);
CREATE TABLE predictions (
	run VARCHAR(16) NOT NULL, 
	recorded_at FLOAT NOT NULL, 
	sha256 VARCHAR(16) NOT NULL, 
	content JSON NOT NULL, 
	PRIMARY KEY (run)
);
INSERT INTO "predictions" VALUES('f2f43e9d3ffeeb86',1.79574642997754168509e+09,'486ff682a61e3c83','{"run": "f2f43e9d3ffeeb86", "target": {"predicted": 3.0, "low": 2.9, "high": 3.1}, "domains": {"\u6d51\u4eea": 0.30000000000000004}}');
CREATE TABLE rates (
	machine VARCHAR(16) NOT NULL, 
	shape VARCHAR(16) NOT NULL, 
	context_length INTEGER NOT NULL, 
	batch_sequences INTEGER NOT NULL, 
	precision VARCHAR(8) NOT NULL, 
	how VARCHAR(8) NOT NULL, 
	tokens_per_s FLOAT NOT NULL, 
	seconds FLOAT NOT NULL, 
	recorded_at FLOAT NOT NULL, 
	about JSON NOT NULL, 
	PRIMARY KEY (machine, shape, context_length, batch_sequences, precision, how)
);
INSERT INTO "rates" VALUES('m','s',16,4,'fp32','probe',10.0,1.0,2.0,'{"machine": {"device": "x", "workers": 1}, "model": {"n_layers": 1, "d_model": 16}}');
CREATE TABLE runs (
	id VARCHAR(16) NOT NULL, 
	spec JSON NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	attempts INTEGER NOT NULL, 
	error TEXT, 
	result JSON, 
	PRIMARY KEY (id)
);
INSERT INTO "runs" VALUES('f2f43e9d3ffeeb86','{"format": 1, "corpus": "00112233aabbccdd", "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32, "vocab_size": 300, "tied_embeddings": false, "qk_norm": false, "rope_theta": 10000.0, "norm_eps": 1e-05}, "context_length": 16, "batch_sequences": 4, "accumulation": 1, "steps": 12, "mixture": [{"start_step": 0, "weights": {"sky": 1.0}}], "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 4, "decay": "linear", "final_ratio": 0.0}, "optimizer": {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-08, "weight_decay": 0.1, "grad_clip": 1.0, "z_loss": 0.0}, "seed": 1, "precision": "fp32", "validation": {"every": null, "windows": 64}}','done',1.79574642998951315882e+09,1.79574643000718855859e+09,1.79574643001540040971e+09,1,NULL,'{"run": "f2f43e9d3ffeeb86", "loss": {"sky": 3.01}, "bits_per_byte": {"sky": 1.0}, "train_loss": 3.0, "tokens": 768, "flops": 38780928.0, "epochs": {"sky": 0.5}, "wall_s": 1.5}');
INSERT INTO "runs" VALUES('d4f65489dfc1681c','{"format": 1, "corpus": "00112233aabbccdd", "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32, "vocab_size": 300, "tied_embeddings": false, "qk_norm": false, "rope_theta": 10000.0, "norm_eps": 1e-05}, "context_length": 16, "batch_sequences": 4, "accumulation": 1, "steps": 12, "mixture": [{"start_step": 0, "weights": {"sky": 1.0}}], "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 4, "decay": "linear", "final_ratio": 0.0}, "optimizer": {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-08, "weight_decay": 0.1, "grad_clip": 1.0, "z_loss": 0.0}, "seed": 2, "precision": "fp32", "validation": {"every": null, "windows": 64}}','done',1.79574642999142265317e+09,1.79574643002307248115e+09,1.79574643002721571916e+09,1,NULL,'{"run": "d4f65489dfc1681c", "loss": {"sky": 3.02}, "bits_per_byte": {"sky": 1.0}, "train_loss": 3.0, "tokens": 768, "flops": 38780928.0, "epochs": {"sky": 0.5}, "wall_s": 1.5}');
INSERT INTO "runs" VALUES('f21bde7687bdd9c9','{"format": 1, "corpus": "00112233aabbccdd", "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32, "vocab_size": 300, "tied_embeddings": false, "qk_norm": false, "rope_theta": 10000.0, "norm_eps": 1e-05}, "context_length": 16, "batch_sequences": 4, "accumulation": 1, "steps": 12, "mixture": [{"start_step": 0, "weights": {"sky": 1.0}}], "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 4, "decay": "linear", "final_ratio": 0.0}, "optimizer": {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-08, "weight_decay": 0.1, "grad_clip": 1.0, "z_loss": 0.0}, "seed": 3, "precision": "fp32", "validation": {"every": null, "windows": 64}}','diverged',1.79574643000043082238e+09,1.79574643003102779386e+09,1.79574643003520250314e+09,1,'run f21bde7687bdd9c9 diverged: at step 3 the loss is nan and the gradient norm nan; lower the learning rate (0.01)',NULL);
INSERT INTO "runs" VALUES('c26eb918a0c44b9b','{"format": 1, "corpus": "00112233aabbccdd", "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32, "vocab_size": 300, "tied_embeddings": false, "qk_norm": false, "rope_theta": 10000.0, "norm_eps": 1e-05}, "context_length": 16, "batch_sequences": 4, "accumulation": 1, "steps": 12, "mixture": [{"start_step": 0, "weights": {"sky": 1.0}}], "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 4, "decay": "linear", "final_ratio": 0.0}, "optimizer": {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-08, "weight_decay": 0.1, "grad_clip": 1.0, "z_loss": 0.0}, "seed": 4, "precision": "fp32", "validation": {"every": null, "windows": 64}}','running',1.79574643000099253651e+09,1.79574643003903102874e+09,NULL,1,NULL,NULL);
CREATE TABLE stages (
	name VARCHAR(64) NOT NULL, 
	"key" VARCHAR(16) NOT NULL, 
	recorded_at FLOAT NOT NULL, 
	content JSON NOT NULL, 
	PRIMARY KEY (name, "key")
);
INSERT INTO "stages" VALUES('mixture','key',1.79574643004360270503e+09,'{"found": {"sky": 1.0}}');
CREATE TABLE study_runs (
	study VARCHAR(64) NOT NULL, 
	run VARCHAR(16) NOT NULL, 
	PRIMARY KEY (study, run), 
	FOREIGN KEY(run) REFERENCES runs (id)
);
INSERT INTO "study_runs" VALUES('target','f2f43e9d3ffeeb86');
INSERT INTO "study_runs" VALUES('target','d4f65489dfc1681c');
INSERT INTO "study_runs" VALUES('ladder','d4f65489dfc1681c');
INSERT INTO "study_runs" VALUES('ladder','f21bde7687bdd9c9');
INSERT INTO "study_runs" VALUES('ladder','c26eb918a0c44b9b');
CREATE TABLE verdicts (
	run VARCHAR(16) NOT NULL, 
	recorded_at FLOAT NOT NULL, 
	content JSON NOT NULL, 
	PRIMARY KEY (run), 
	FOREIGN KEY(run) REFERENCES predictions (run)
);
INSERT INTO "verdicts" VALUES('f2f43e9d3ffeeb86',1.79574643005324268343e+09,'{"run": "f2f43e9d3ffeeb86", "rows": [], "inside": 1}');
CREATE TRIGGER predictions_UPDATE BEFORE UPDATE ON predictions  BEGIN SELECT RAISE(ABORT, 'predictions are never rewritten'); END;
CREATE TRIGGER predictions_DELETE BEFORE DELETE ON predictions  BEGIN SELECT RAISE(ABORT, 'predictions are never rewritten'); END;
CREATE TRIGGER predictions_INSERT BEFORE INSERT ON predictions WHEN EXISTS (SELECT 1 FROM predictions WHERE run = NEW.run) BEGIN SELECT RAISE(ABORT, 'predictions are never rewritten'); END;
CREATE TRIGGER verdicts_UPDATE BEFORE UPDATE ON verdicts  BEGIN SELECT RAISE(ABORT, 'verdicts are never rewritten'); END;
CREATE TRIGGER verdicts_DELETE BEFORE DELETE ON verdicts  BEGIN SELECT RAISE(ABORT, 'verdicts are never rewritten'); END;
CREATE TRIGGER verdicts_INSERT BEFORE INSERT ON verdicts WHEN EXISTS (SELECT 1 FROM verdicts WHERE run = NEW.run) BEGIN SELECT RAISE(ABORT, 'verdicts are never rewritten'); END;
COMMIT;
